"""Types that are declared for values: what fits them, and how they are called."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from continuum.references import is_reference_to

__all__ = ["described", "misfit"]

_WRAPPERS = frozenset({typing.Annotated, typing.Required, typing.NotRequired, typing.Final})


def misfit(annotation: Any, value: Any, path: str = "payload") -> tuple[str, Any] | None:
    """Find what of a value is not of a declared type, a class or an annotation; None if all of it is.

    It looks into lists, tuples, sets and dicts, as far as the annotation says what they hold, and at the keys of typed
    dictionaries. Into objects it does not look: whoever made them has been asked for what they hold.

    Args:
        annotation: the type. What cannot be checked, such as a type variable or a forward reference, fits.
        value: the value.
        path: what it is called.

    Returns:
        The path of the first thing that does not fit, and that thing.
    """
    annotation = _unwrapped(annotation)
    if annotation is Any or annotation is object:
        return None
    if annotation is None or annotation is types.NoneType:
        return None if value is None else (path, value)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Union or origin is types.UnionType:
        return None if any(misfit(option, value, path) is None for option in args) else (path, value)
    if origin is typing.Literal:
        fits = any(value == option and type(value) is type(option) for option in args)
        return None if fits else (path, value)
    if typing.is_typeddict(origin or annotation):
        return _misfit_of_keys(origin or annotation, value, path)
    kind = origin or annotation
    if not isinstance(kind, type):
        return None
    if not _is_a(kind, value) or (_is_fixed(kind, args) and len(args) != len(value)):
        return path, value
    return next(filter(None, (misfit(part, item, at) for part, item, at in _parts(kind, args, value, path))), None)


def described(annotation: Any) -> str:
    """Say a type as one writes it, with the names of classes and without those of their modules."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return "None"
    if origin is typing.Union or origin is types.UnionType:
        return " | ".join(described(arg) for arg in args)
    if origin is typing.Annotated:
        return described(args[0])
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if isinstance(origin, type) and args:
        return f"{origin.__qualname__}[{', '.join('...' if arg is ... else described(arg) for arg in args)}]"
    return getattr(annotation, "__qualname__", None) or getattr(annotation, "__name__", None) or str(annotation)


def _unwrapped(annotation: Any) -> Any:
    while True:
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif typing.get_origin(annotation) in _WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _is_a(kind: type, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float and isinstance(value, int):
        return True
    try:
        return is_reference_to(kind, value) or isinstance(value, kind)
    except TypeError:  # a protocol that says nothing of instances
        return True


def _is_fixed(kind: type, args: tuple[Any, ...]) -> bool:
    return kind is tuple and bool(args) and args[-1] is not ...


def _at(path: str, key: Any) -> str:
    return f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"


def _parts(kind: type, args: tuple[Any, ...], value: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """What a container holds, each with its type and path."""
    if _is_fixed(kind, args):
        yield from ((arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    elif issubclass(kind, Mapping) and len(args) == 2:
        for key, item in value.items():
            yield args[0], key, f"the key {key!r} of {path}"
            yield args[1], item, _at(path, key)
    elif issubclass(kind, Collection) and args and isinstance(value, list | tuple | set | frozenset):
        ordered = isinstance(value, list | tuple)
        yield from ((args[0], item, f"{path}[{i}]" if ordered else f"a part of {path}") for i, item in enumerate(value))


def _misfit_of_keys(kind: Any, value: Any, path: str) -> tuple[str, Any] | None:
    if not isinstance(value, dict) or not kind.__required_keys__ <= value.keys():
        return path, value
    declared = kind.__annotations__
    found = (misfit(declared[key], item, _at(path, key)) for key, item in value.items() if key in declared)
    return next(filter(None, found), None)
