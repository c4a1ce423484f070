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
    for parameter in _parameters(fn):
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


def _parameters(fn: Any) -> list[inspect.Parameter]:
    try:
        if sys.version_info >= (3, 14):  # names that are not defined yet must not raise
            import annotationlib

            signature = inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
        else:
            signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some built-in functions have none
        return []
    return list(signature.parameters.values())


def class_annotations(cls: type, *, own_only: bool = False) -> dict[str, Any]:
    """Return the annotations of a class, resolved as far as possible; ``own_only`` leaves out what it inherits."""
    hints: dict[str, Any] = {}
    for owner in (cls,) if own_only else reversed(cls.__mro__):
        hints.update(_hints(owner)[0])
    return hints


def _hints(owner: Any) -> tuple[dict[str, Any], bool]:
    """The annotations of a function, or a class's own, and whether all of them could be resolved."""
    annotations = _raw(owner)
    if not annotations:
        return {}, True
    namespace = _namespace(owner)
    is_class = isinstance(owner, type)
    try:
        return _resolve(annotations, namespace, is_class), True
    except Exception:  # NameError mostly, but an annotation may be any expression
        pass
    hints: dict[str, Any] = {}
    for name, annotation in annotations.items():
        try:
            hints |= _resolve({name: annotation}, namespace, is_class)
        except Exception:
            hints[name] = annotation
    return hints, False


def _resolve(annotations: Mapping[str, Any], namespace: dict[str, Any], is_class: bool) -> dict[str, Any]:
    # A stand-in carries the annotations, because the names they may use differ from class to class of a hierarchy.
    if is_class:
        stand_in: Any = type("stand_in", (), {"__annotations__": dict(annotations)})
    else:

        def stand_in() -> None: ...

        stand_in.__annotations__ = dict(annotations)
    return typing.get_type_hints(stand_in, namespace, namespace, include_extras=True)


def _raw(owner: Any) -> Mapping[str, Any]:
    try:
        if sys.version_info >= (3, 14):
            import annotationlib

            return annotationlib.get_annotations(owner, format=annotationlib.Format.FORWARDREF)
        return inspect.get_annotations(owner)
    except (TypeError, ValueError):  # neither a function nor a class
        return {}


def _namespace(owner: Any) -> dict[str, Any]:
    """The names that the annotations of a function or a class may use."""
    module = sys.modules.get(getattr(owner, "__module__", None) or "")
    names: dict[str, Any] = {}
    if isinstance(owner, type):
        # Nested classes only: a field called "date" with a default must not hide the class it is annotated with.
        names.update({name: value for name, value in vars(owner).items() if isinstance(value, type)})
    names.update(getattr(owner, "__globals__", None) or (vars(module) if module else {}))
    for parameter in getattr(owner, "__type_params__", ()):
        names[parameter.__name__] = parameter
    if isinstance(owner, type):
        names[owner.__name__] = owner
    elif getattr(owner, "__closure__", None):
        for name, cell in zip(owner.__code__.co_freevars, owner.__closure__, strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
    return names
