"""Stand-ins for activities and children, and the record of every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from continuum.core.definitions import ActivityDefinition, WorkflowDefinition, registry
from continuum.core.durations import seconds
from continuum.exceptions import ContinuumError

__all__ = ["Call", "Mock", "Mocks", "MockExhaustedError", "target_of"]

_MISSING: Any = object()


class MockExhaustedError(ContinuumError, AssertionError):
    """A mock with a list of outcomes was called more often than the list is long."""


@dataclass(slots=True)
class Call:
    """A call that a workflow has made of an activity or a child.

    Attributes:
        name: the activity's or workflow's name.
        args: its positional arguments, as the call has them after its defaults; model instances are ``ModelRef``.
        kwargs: its keyword-only arguments.
        attempts: how many attempts were begun.
        run_id: the run that made it.
        command_id: the command's id in that run's history.
        idempotency_key: the key of the call, or None.
        state: ``running``, ``completed``, ``failed`` or ``abandoned``.
        result: what it returned.
        error: ``{"type", "message", "traceback", "details"}`` of the last attempt that failed, or None.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempts: int
    run_id: UUID
    command_id: str
    idempotency_key: str | None = None
    state: str = "running"
    result: Any = None
    error: dict[str, Any] | None = None


@dataclass(eq=False, slots=True)
class Mock:
    """What stands in for an activity or a child. Made by ``continuum_env.mock()``."""

    name: str
    behave: Callable[..., Any]
    takes: float = 0.0
    _calls: list[Call] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        """The calls of what it stands in for, oldest first."""
        return [call for call in self._calls if call.name == self.name]

    @property
    def call_count(self) -> int:
        """How many there were."""
        return len(self.calls)


class Mocks:
    """The stand-ins of one environment, and the calls made in it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._by_name: dict[str, Mock] = {}

    def set(
        self,
        target: Any,
        fn: Callable[..., Any] | None = None,
        *,
        return_value: Any = _MISSING,
        side_effect: Any = None,
        raises: Any = None,
        takes: Any = 0,
    ) -> Mock:
        """Have something stand in for an activity or a child from now on."""
        definition = target_of(target)
        given = {"fn": fn, "side_effect": side_effect, "raises": raises}
        named = [name for name, value in given.items() if value is not None]
        named += ["return_value"] if return_value is not _MISSING else []
        if len(named) != 1:
            raise TypeError(
                f"mock({definition.name}) takes one of a function, return_value=, side_effect= and raises=, "
                f"not {' and '.join(named) or 'none of them'}"
            )
        if fn is not None:
            if not callable(fn):
                raise TypeError(f"mock({definition.name}): {fn!r} is no function; a value is given as return_value=")
            behave = fn
        elif raises is not None:
            behave = _raising(_checked_exception(raises, definition.name))
        elif side_effect is not None:
            behave = _side_effect(side_effect, definition.name)
        else:
            behave = _returning(return_value)
        mock = Mock(definition.name, behave, seconds(takes, "takes"), self.calls)
        self._by_name[definition.name] = mock
        return mock

    def remove(self, target: Any) -> None:
        """Have the real thing again."""
        self._by_name.pop(target_of(target).name, None)

    def get(self, name: str) -> Mock | None:
        """Return what stands in for an activity or workflow of that name, or None."""
        return self._by_name.get(name)


def target_of(target: Any) -> ActivityDefinition | WorkflowDefinition:
    """Return the definition that ``target`` is, or names."""
    if isinstance(target, ActivityDefinition | WorkflowDefinition):
        return target
    if isinstance(target, str):
        if any(target == definition.name for definition in registry.workflows()):
            return registry.workflow(target)
        return registry.activity(target)
    what = getattr(target, "__qualname__", None) or repr(target)
    raise TypeError(f"{what} is neither an @activity nor a @workflow, nor the name of one")


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _raising(error: Any) -> Callable[..., Any]:
    def behave(*args: Any, **kwargs: Any) -> Any:
        raise error

    return behave


def _side_effect(given: Any, name: str) -> Callable[..., Any]:
    if _is_exception(given):
        return _raising(given)
    if callable(given):
        return given
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(
            f"mock({name}): side_effect must be a function, an exception, or a list of results and exceptions, "
            f"not {given!r}"
        )
    return _in_turn(iter(given), name)


def _in_turn(outcomes: Iterator[Any], name: str) -> Callable[..., Any]:
    def behave(*args: Any, **kwargs: Any) -> Any:
        try:
            outcome = next(outcomes)
        except StopIteration:
            raise MockExhaustedError(f"the mock of {name} was called more often than it has outcomes") from None
        if _is_exception(outcome):
            raise outcome
        return outcome

    return behave


def _checked_exception(error: Any, name: str) -> Any:
    if not _is_exception(error):
        raise TypeError(f"mock({name}): raises must be an exception, or the class of one, not {error!r}")
    return error


def _is_exception(value: Any) -> bool:
    return isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException))
