"""What functions and classes are annotated with, resolved as far as possible."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ParameterAnnotations", "class_annotations", "parameter_annotations", "return_annotation"]


@dataclass(frozen=True, slots=True)
class ParameterAnnotations:
    """The annotations of a function's parameters; None stands for "not annotated".

    Attributes:
        positional: of the parameters that can be given by position, in order.
        by_name: of the parameters that can be given by name.
        rest: of ``*args``.
        named_rest: of ``**kwargs``.
    """

    positional: tuple[Any, ...] = ()
    by_name: Mapping[str, Any] = field(default_factory=dict)
    rest: Any = None
    named_rest: Any = None

    def at(self, index: int) -> Any:
        """The annotation of the positional argument at ``index``, counted from 0."""
        return self.positional[index] if index < len(self.positional) else self.rest

    def named(self, name: str) -> Any:
        """The annotation of a keyword argument."""
        return self.by_name.get(name, self.named_rest)


def parameter_annotations(fn: Callable[..., Any]) -> ParameterAnnotations:
    """Return the annotations of a function's parameters.

    What ``functools.partial`` and bound methods have filled in by position is left out; decorated functions are looked
    through by ``__wrapped__``. An annotation that cannot be resolved (yet) stands there as a string or
    ``typing.ForwardRef``, which the codec reports when it matters.
    """
    return _described(fn)[0]


def return_annotation(fn: Callable[..., Any]) -> Any:
    """Return the annotation of a function's return value, or None if there is none; ``-> None`` is ``NoneType``."""
    return _described(fn)[1]


_described_functions: weakref.WeakKeyDictionary[Any, tuple[ParameterAnnotations, Any]] = weakref.WeakKeyDictionary()


def _described(fn: Callable[..., Any]) -> tuple[ParameterAnnotations, Any]:
    try:
        known = _described_functions.get(fn)
    except TypeError:  # neither hashable nor weakly referable: worked out every time
        return _describe(fn)[0]
    if known is not None:
        return known
    described, resolved = _describe(fn)
    if resolved:  # else the classes that are missing may be defined later
        _described_functions[fn] = described
    return described


def _describe(fn: Callable[..., Any]) -> tuple[tuple[ParameterAnnotations, Any], bool]:
    hints, resolved = _hints(_innermost(fn))
    positional: list[Any] = []
    by_name: dict[str, Any] = {}
    rest = named_rest = None
    for parameter in _signature(fn).parameters.values():
        hint = hints.get(parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = hint
        elif parameter.kind is parameter.VAR_KEYWORD:
            named_rest = hint
        else:
            if parameter.kind is not parameter.KEYWORD_ONLY:
                positional.append(hint)
            if parameter.kind is not parameter.POSITIONAL_ONLY:
                by_name[parameter.name] = hint
    return (ParameterAnnotations(tuple(positional), by_name, rest, named_rest), hints.get("return")), resolved


def _innermost(fn: Any) -> Any:
    """The function that was written, below partials, methods and decorators."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif isinstance(getattr(type(fn), "__call__", None), types.FunctionType):  # noqa: B004 - an object with its own
            fn = type(fn).__call__
        else:
            return fn


def _signature(fn: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # names that are not defined yet must not raise
        import annotationlib

        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(fn)


def class_annotations(cls: type, *, own_only: bool = False) -> dict[str, Any]:
    """Return the annotations of a class, resolved as far as possible; ``own_only`` leaves out what it inherits."""
    hints, _ = _hints(cls)
    own = _raw(cls)
    return {name: hint for name, hint in hints.items() if name in own} if own_only else hints


def _hints(obj: Any) -> tuple[dict[str, Any], bool]:
    """The annotations of a function or class, and whether all of them could be resolved."""
    names = _local_names(obj)
    try:
        return typing.get_type_hints(obj, localns=names or None, include_extras=True), True
    except Exception:  # NameError mostly, but an annotation may be any expression
        pass
    hints: dict[str, Any] = {}
    resolved = True
    for owner in reversed(obj.__mro__) if isinstance(obj, type) else (obj,):
        module = sys.modules.get(owner.__module__)
        namespace = {**(vars(module) if module else {}), **_local_names(owner)}
        for name, annotation in _raw(owner).items():
            try:
                hints[name] = _resolve(annotation, namespace)
            except Exception:
                hints[name] = annotation
                resolved = False
    return hints, resolved


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    def probe() -> None: ...

    probe.__annotations__ = {"probe": annotation}
    return typing.get_type_hints(probe, namespace, include_extras=True)["probe"]


def _raw(obj: Any) -> Mapping[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(obj, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(obj)


def _local_names(obj: Any) -> dict[str, Any]:
    """Names an annotation may use that are no globals: type parameters, the class itself, those of closures."""
    names: dict[str, Any] = {}
    for param in getattr(obj, "__type_params__", ()):
        names[param.__name__] = param
    if isinstance(obj, type):
        names[obj.__name__] = obj
    elif isinstance(obj, types.FunctionType) and obj.__closure__:
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__, strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
    return names
