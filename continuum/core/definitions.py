"""What users declare: workflows and activities."""

from __future__ import annotations

import inspect
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from functools import cached_property, update_wrapper
from typing import Any

from continuum import values
from continuum.core.children import ChildOptions
from continuum.core.effects import Bound, Effect
from continuum.core.loop import DeterministicLoop
from continuum.core.options import ActivityOptions, activity_options
from continuum.core.registry import Registry, describe_function, registry
from continuum.core.retry import Retry
from continuum.exceptions import DurableValueError, NotInWorkflowError

__all__ = ["ActivityDefinition", "Registry", "Retry", "WorkflowDefinition", "activity", "registry", "workflow"]

_DEFAULT_RETENTION = timedelta(days=30)
_PER_CALL = ("retry", "timeout", "heartbeat_timeout", "queue", "priority", "idempotency_key")
_DECLARED = (*_PER_CALL, "transactional")


class _Definition:
    """What workflows and activities share: a function, its name, and its signature checked once."""

    kind, a_kind = "function", "a function"
    known_plain = False  # whether ``returns_plain`` was found to be so

    def __init__(self, fn: Callable[..., Any], name: str | None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"the name of {self.a_kind} must be a non-empty string, not {name!r}")
        update_wrapper(self, fn, updated=())  # attributes that others have put on the function stay there
        self.fn = fn
        self.name = name or f"{fn.__module__}.{fn.__qualname__}"

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.fn)

    @cached_property
    def returns(self) -> Any:
        """The return annotation, resolved, or None where there is none that helps."""
        return values.return_annotation(self.fn)

    @cached_property
    def returns_plain(self) -> bool:
        """Whether the return annotation has no say in how a result is restored."""
        self.known_plain = plain = not values.has_codec(self.returns)
        return plain

    @cached_property
    def parameters(self) -> Any:
        """The parameter annotations, resolved, as ``continuum.values`` understands them."""
        return values.parameter_annotations(self.fn)

    @cached_property
    def _positional(self) -> tuple[int, int]:
        """Fewest and most plain positional arguments that need no closer look."""
        least = most = 0
        for parameter in self.signature.parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                most += 1
                if parameter.default is parameter.empty:
                    least = most
            elif parameter.kind is parameter.VAR_POSITIONAL:
                most = 1 << 30
            elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                return 1, 0  # never plain: bind() has to see it
        return least, most

    @cached_property
    def _as_they_are(self) -> tuple[int, int]:
        """Fewest and most plain positional arguments whose annotations have no say in how they are written."""
        least, most = self._positional
        annotations = self.parameters
        for index in range(min(most, len(annotations.positional) + 1)):
            if values.has_codec(annotations.at(index)):
                return least, index
        return least, most

    def bind_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Check arguments against the signature; return them as positional ones where they can be.

        So ``f(1, b=2)`` and ``f(1, 2)`` are the same call, in the journal too.

        Raises:
            TypeError: they do not fit; the message names the function and the argument.
        """
        least, most = self._positional
        if not kwargs and least <= len(args) <= most:
            return list(args), {}
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.name}(): {exc}") from None
        return list(bound.args), dict(bound.kwargs)

    def encode_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str = "input", max_bytes: int | None = None
    ) -> str:
        """Return the JSON text of a call's arguments: an array, or ``{"args", "kwargs"}`` with keyword-only ones.

        Raises:
            TypeError: they do not fit the signature.
            DurableValueError: one of them cannot be journaled; the path names it, such as ``input[0].lines[3]``.
        """
        least, most = self._as_they_are
        if not kwargs and least <= len(args) <= most:
            if len(args) == 1:
                text = values.encode_plain(args[0])
            else:
                texts = [values.encode_plain(value) for value in args]
                text = None if None in texts else ",".join(texts)
            if text is not None and (max_bytes is None or len(text) + 2 <= max_bytes):
                return f"[{text}]"
        positional, keywords = self.bind_arguments(args, kwargs)
        annotation = self.parameters.at
        try:
            parts = [values.encode(v, annotation(i), max_bytes=max_bytes) for i, v in enumerate(positional)]
        except DurableValueError:
            # Paths cost more than the encoding of a small value, so they are made when they are needed.
            for i, v in enumerate(positional):
                values.encode(v, annotation(i), path=f"{path}[{i}]", max_bytes=max_bytes)
            raise
        text = f"[{','.join(parts)}]"
        if keywords:
            text = f'{{"args":{text},"kwargs":{{{self._encode_keywords(keywords, path, max_bytes)}}}}}'
        return text

    def _encode_keywords(self, keywords: dict[str, Any], path: str, max_bytes: int | None) -> str:
        annotation = self.parameters.named
        parts = []
        for key, value in sorted(keywords.items()):
            text = values.encode(value, annotation(key), path=f"{path}.{key}", max_bytes=max_bytes)
            parts.append(f"{values.encode(key)}:{text}")
        return ",".join(parts)

    def decode_arguments(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        """The inverse of :meth:`encode_arguments`: fresh values, restored by the parameters' annotations."""
        raw = values.parse(text)
        if type(raw) is list and len(raw) <= self._as_they_are[1] and values.TAG_MARK not in text:
            return raw, {}
        annotations = self.parameters
        keywords: dict[str, Any] = {}
        if isinstance(raw, dict):
            keywords = {key: values.restore(value, annotations.named(key)) for key, value in raw["kwargs"].items()}
            raw = raw["args"]
        return [values.restore(value, annotations.at(index)) for index, value in enumerate(raw)], keywords

    def restore_result(self, tree: Any) -> Any:
        """Return the value of a result's JSON tree, which is used up.

        Raises:
            DurableValueError: it does not fit the return annotation.
        """
        if self.returns_plain and type(tree) is not dict and type(tree) is not list:
            return tree
        return values.restore(tree, self.returns)

    def bind(self, *args: Any, **kwargs: Any) -> Bound:
        """Return a call that is not made yet, for ``compensated_by``.

        Raises:
            TypeError: the arguments do not fit the signature.
        """
        self.bind_arguments(args, kwargs)
        return Bound(self._call, self.name, args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Effect:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


class WorkflowDefinition(_Definition):
    """A durable ``async def`` function. Made by :func:`workflow`.

    Calling it inside a workflow makes an effect: await it to start a child and get its result.

    Attributes:
        fn: the function itself.
        name: the name runs are stored under.
        version: the number the author gave.
        version_hash: fingerprint of the source, see :func:`continuum.core.versions.source_hash`.
        retention: how long a finished run is kept, or None for ever.
        signals: declared signals as name → type, or None when any signal is welcome.
    """

    kind, a_kind = "workflow", "a workflow"

    def __init__(
        self,
        fn: Callable[..., Coroutine[Any, Any, Any]],
        *,
        name: str | None = None,
        version: int = 1,
        retention: timedelta | None = _DEFAULT_RETENTION,
        signals: Mapping[str, Any] | None = None,
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"a workflow must be an async def function, which {describe_function(fn)} is not")
        if type(version) is not int or not 1 <= version < 2**31:
            raise ValueError(f"version must be a positive int, not {version!r}")
        if retention is not None:
            if not isinstance(retention, timedelta):
                raise TypeError(f"retention must be a timedelta or None, not {retention!r}")
            if retention < timedelta(0):
                raise ValueError(f"retention must not be negative, not {retention!r}")
        if signals is not None and not (isinstance(signals, Mapping) and all(isinstance(k, str) for k in signals)):
            raise TypeError(f"signals must map names to types, not {signals!r}")
        super().__init__(fn, name)
        self.version = version
        self.retention = retention
        self.signals = None if signals is None else dict(signals)

    @cached_property
    def version_hash(self) -> str:
        from continuum.core.versions import source_hash  # reads source, which who only declares need not be able to

        return source_hash(self.fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Effect:
        return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Effect:
        loop = _get_running_loop()
        if type(loop) is not DeterministicLoop:
            raise NotInWorkflowError(
                f"{self.name} is a workflow: start a run of it with continuum.start({self.__name__}, ...), or run the "
                f"plain function in a unit test with {self.__name__}.call(...)"
            )
        return Effect(loop.execution, "child", self.name, self, args, kwargs, ChildOptions())

    def call(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the plain coroutine function, for unit tests: nothing is durable."""
        return self.fn(*args, **kwargs)


class ActivityDefinition(_Definition):
    """A function that does real work on behalf of a run. Made by :func:`activity`.

    Calling it inside a workflow makes an effect: await it, or wrap it in a task, to run the activity.
    """

    kind, a_kind = "activity", "an activity"

    def __init__(self, fn: Callable[..., Any], *, name: str | None = None, options: ActivityOptions) -> None:
        if not callable(fn) or isinstance(fn, type) or not hasattr(fn, "__qualname__"):
            raise TypeError(f"an activity must be a function, which {describe_function(fn)} is not")
        super().__init__(fn, name)
        self.default_options = options
        self.is_async = inspect.iscoroutinefunction(fn)
        if self.is_async and options.transactional:
            raise TypeError(
                f"{describe_function(fn)}: a transactional activity must be a def function, as Django's transactions "
                "do not span awaits"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Effect:
        loop = _get_running_loop()
        if type(loop) is not DeterministicLoop:
            return self._effect(self.default_options, args, kwargs)  # which refuses
        return Effect(loop.execution, "activity", self.name, self, args, kwargs, self.default_options)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Effect:
        return self._effect(self.default_options, args, kwargs)

    def _effect(self, options: ActivityOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Effect:
        loop = _get_running_loop()
        if type(loop) is not DeterministicLoop:
            raise NotInWorkflowError(
                f"{self.name} is an activity: await it inside a workflow, or run the plain function with "
                f"{self.__name__}.call(...); a workflow is started with continuum.start(...)"
            )
        return Effect(loop.execution, "activity", self.name, self, args, kwargs, options)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function, for unit tests: no journal, no retries."""
        return self.fn(*args, **kwargs)

    def options(self, **overrides: Any) -> Callable[..., Effect]:
        """Return a callable that runs this activity with other options for one call.

        Args:
            retry, timeout, heartbeat_timeout, queue, priority: as for :func:`activity`.
            idempotency_key: the key itself, a string.

        Raises:
            TypeError: an option that does not exist, or is of the wrong type.
            ValueError: one that is out of range.
        """
        changed = activity_options(self.default_options, overrides, f"{self.__name__}.options()", _PER_CALL)

        def call(*args: Any, **kwargs: Any) -> Effect:
            return self._effect(changed, args, kwargs)

        def bind(*args: Any, **kwargs: Any) -> Bound:
            self.bind_arguments(args, kwargs)
            return Bound(lambda args, kwargs: self._effect(changed, args, kwargs), self.name, args, kwargs)

        call.bind = bind  # type: ignore[attr-defined]
        return update_wrapper(call, self.fn)


def workflow(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    version: int = 1,
    retention: timedelta | None = _DEFAULT_RETENTION,
    signals: Mapping[str, Any] | None = None,
) -> Any:
    """Declare a durable workflow. Usable bare or called.

    Args:
        name: the name runs are stored under; ``"<module>.<qualname>"`` unless given.
        version: a number of the author's choosing, at least 1.
        retention: how long a finished run is kept; None keeps it for ever.
        signals: name → payload type. Given, it closes the signal surface: other names and types are refused.

    Returns:
        WorkflowDefinition: what :func:`continuum.start` takes.

    Raises:
        TypeError: the function is no ``async def``, or an argument is of the wrong type.
        ValueError: an argument is out of range, or the name is taken by another function.
    """

    def declare(function: Callable[..., Any]) -> WorkflowDefinition:
        definition = WorkflowDefinition(function, name=name, version=version, retention=retention, signals=signals)
        registry.add_workflow(definition)
        return definition

    return declare if fn is None else declare(fn)


def activity(fn: Callable[..., Any] | None = None, *, name: str | None = None, **options: Any) -> Any:
    """Declare an activity: a ``def`` or ``async def`` that does real work and runs at least once.

    Args:
        name: the name it is journaled under; ``"<module>.<qualname>"`` unless given.
        retry: a :class:`Retry`; one attempt unless given.
        timeout: seconds or timedelta one attempt may take; no limit unless given.
        heartbeat_timeout: seconds or timedelta that may pass between two calls of :func:`heartbeat`.
        queue: a name: workers that serve this queue carry the activity out. Unless given, the run's own worker does.
        priority: in a queue, tasks with a higher one go first, -32768 to 32767.
        idempotency_key: a function of the activity's arguments that returns a string or None: of each activity and key
            there is one committed result, whichever run asks.
        transactional: True commits what the function writes through the ORM together with the record of its result:
            it takes effect exactly once. Only for ``def`` functions.

    Returns:
        ActivityDefinition: call it inside a workflow.

    Raises:
        TypeError: not a function, or an option that does not exist or is of the wrong type.
        ValueError: an option is out of range, or the name is taken by another function.
    """
    chosen = activity_options(ActivityOptions(), options, "@activity", _DECLARED)
    if isinstance(chosen.idempotency_key, str):
        raise TypeError(
            f"@activity: idempotency_key must be a function of the arguments, not {chosen.idempotency_key!r}: with one "
            "key all calls would share one result; .options(idempotency_key=...) gives a single call its key"
        )

    def declare(function: Callable[..., Any]) -> ActivityDefinition:
        definition = ActivityDefinition(function, name=name, options=chosen)
        registry.add_activity(definition)
        return definition

    return declare if fn is None else declare(fn)
