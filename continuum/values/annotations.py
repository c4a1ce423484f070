"""From an annotation to its codec, worked out once."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

from continuum.values.classes import DataclassCodec, ModelCodec, NamedTupleCodec, TypedDictCodec
from continuum.values.codecs import (
    SEQUENCES,
    Codec,
    EnumCodec,
    FixedTupleCodec,
    LazyCodec,
    MappingCodec,
    SequenceCodec,
    UnresolvedCodec,
)
from continuum.values.references import is_reference_class
from continuum.values.signatures import class_annotations
from continuum.values.unions import union_of

__all__ = ["codec_for"]

Env = Mapping[Any, Codec | None]
"""What type variables stand for."""

_WRAPPERS = frozenset({"Annotated", "Required", "NotRequired", "ReadOnly", "Final", "ClassVar"})
_DICTS = frozenset({Any, object, dict, abc.Mapping, abc.MutableMapping})
_SEQUENCE_KINDS: dict[Any, frozenset[type]] = {
    kind: frozenset({kind}) if kind in SEQUENCES else SEQUENCES
    for kind in (
        *(list, tuple, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet),
        *(abc.Collection, abc.Container, abc.Iterable, abc.Reversible),
    )
}
_MAPPINGS = frozenset({dict, abc.Mapping, abc.MutableMapping})


def codec_for(annotation: Any) -> Codec | None:
    """Return the codec of an annotation, or None if values need none: they carry all it takes to restore them."""
    try:
        return _cached(annotation)
    except TypeError:  # not hashable, as Annotated[int, []] is not
        return _compile(annotation, {}, {})


@lru_cache(maxsize=4096)
def _cached(annotation: Any) -> Codec | None:
    return _compile(annotation, {}, {})


def _compile(annotation: Any, env: Env, active: dict[Any, LazyCodec]) -> Codec | None:
    """Work out a codec. ``active`` holds the aliases and typed dictionaries that this is a part of."""
    if isinstance(annotation, str):
        return UnresolvedCodec(annotation)
    if isinstance(annotation, typing.ForwardRef):
        return UnresolvedCodec(annotation.__forward_arg__)
    if isinstance(annotation, typing.TypeVar):
        return _of_variable(annotation, env, active)
    if annotation is typing.Self:
        return env.get(typing.Self)
    if isinstance(annotation, typing.NewType):
        return _compile(annotation.__supertype__, env, active)
    origin = typing.get_origin(annotation)
    alias = origin if origin is not None else annotation
    if type(alias).__name__ == "TypeAliasType":
        return _of_alias(alias, typing.get_args(annotation), env, active)
    if origin is None:
        return _of_class(annotation, (), active) if isinstance(annotation, type) else None
    args = typing.get_args(annotation)
    if origin is typing.Union or origin is types.UnionType:
        return _of_union(args, env, active)
    if origin is typing.Literal:
        return _of_union([type(arg) for arg in args if isinstance(arg, Enum)], env, active)
    if typing.get_origin(annotation) is typing.Annotated or getattr(origin, "_name", None) in _WRAPPERS:
        return _compile(args[0], env, active)
    if origin is tuple and args[-1:] != (...,):
        items = tuple(_compile(arg, env, active) for arg in args)
        return FixedTupleCodec(items) if any(items) else None
    if origin in _SEQUENCE_KINDS:
        item = _compile(args[0], env, active)
        return None if item is None else SequenceCodec(item, _SEQUENCE_KINDS[origin])
    if origin in _MAPPINGS:
        key, value = (_compile(arg, env, active) for arg in args)
        return MappingCodec(key, value) if key or value else None
    if isinstance(origin, type):
        return _of_class(origin, tuple(_compile(arg, env, active) for arg in args), active)
    return None


def _of_union(args: Any, env: Env, active: dict[Any, LazyCodec]) -> Codec | None:
    codecs = [_compile(arg, env, active) for arg in args]
    free = [arg for arg, codec in zip(args, codecs, strict=True) if codec is None]
    open_to_dicts = any((typing.get_origin(arg) or arg) in _DICTS or isinstance(arg, typing.TypeVar) for arg in free)
    return union_of([codec for codec in codecs if codec is not None], open_to_dicts=open_to_dicts)


def _of_variable(variable: Any, env: Env, active: dict[Any, LazyCodec]) -> Codec | None:
    if variable in env:
        return env[variable]
    if variable.__constraints__:
        return _of_union(variable.__constraints__, env, active)
    return None if variable.__bound__ is None else _compile(variable.__bound__, env, active)


def _of_alias(alias: Any, args: tuple[Any, ...], env: Env, active: dict[Any, LazyCodec]) -> Codec | None:
    codecs = tuple(_compile(arg, env, active) for arg in args)
    own = dict(zip(alias.__type_params__, codecs, strict=False))
    try:
        target = alias.__value__  # evaluated only now
    except Exception:  # NameError mostly
        return UnresolvedCodec(alias.__name__)
    return _guarded((alias, codecs), active, lambda inside: _compile(target, own, inside))


def _guarded(
    key: Any, active: dict[Any, LazyCodec], compile_it: Callable[[dict[Any, LazyCodec]], Codec | None]
) -> Codec | None:
    """Work out what may contain itself: there it is a codec that is filled in later."""
    if key in active:
        return active[key]
    made: list[Codec | None] = []
    lazy = LazyCodec(lambda: made[0])
    made.append(compile_it({**active, key: lazy}))
    return made[0]


def _of_class(kind: type, args: tuple[Codec | None, ...], active: dict[Any, LazyCodec]) -> Codec | None:
    if is_reference_class(kind):
        return None  # whatever else it is: the tag says it all
    if issubclass(kind, Enum):
        return _enum_codec(kind) if kind.__members__ else None
    if typing.is_typeddict(kind):
        return _guarded((kind, args), active, lambda inside: _of_typed_dict(kind, args, inside))
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return _fields_codec(kind, args)
    if hasattr(kind, "model_dump") and hasattr(kind, "model_validate"):
        return _model_codec(kind)
    return None


@lru_cache(maxsize=4096)
def _enum_codec(kind: type[Enum]) -> Codec:
    return EnumCodec(kind)


@lru_cache(maxsize=4096)
def _model_codec(kind: type) -> Codec:
    return ModelCodec(kind)


@lru_cache(maxsize=4096)
def _fields_codec(kind: type, args: tuple[Codec | None, ...]) -> Codec:
    make = DataclassCodec if dataclasses.is_dataclass(kind) else NamedTupleCodec
    return make(kind, lambda: _field_codecs(kind, args))


def _of_typed_dict(kind: type, args: tuple[Codec | None, ...], active: dict[Any, LazyCodec]) -> Codec | None:
    env = dict(zip(getattr(kind, "__parameters__", ()), args, strict=False))
    codecs = {name: _compile(hint, env, active) for name, hint in class_annotations(kind).items()}
    return TypedDictCodec(kind, lambda: codecs) if any(codecs.values()) else None


def _field_codecs(kind: type, args: tuple[Codec | None, ...]) -> dict[str, Codec | None]:
    """The codec of every field, in order. Each class of the hierarchy sees type variables its own way."""
    is_dataclass = dataclasses.is_dataclass(kind)
    names = [field.name for field in dataclasses.fields(kind)] if is_dataclass else kind._fields  # type: ignore
    envs = _envs(kind, args)
    codecs: dict[str, Codec | None] = dict.fromkeys(names)
    for base in reversed(kind.__mro__):
        for name, hint in class_annotations(base, own_only=True).items():
            if name in codecs:
                codecs[name] = _compile(hint, envs[base], {})
    return codecs


def _envs(kind: type, args: tuple[Codec | None, ...]) -> dict[type, Env]:
    """What the type variables stand for in each class of a hierarchy."""
    own = _fields_codec(kind, args)

    def env_of(cls: Any, given: tuple[Codec | None, ...]) -> Env:
        return {**dict(zip(getattr(cls, "__parameters__", ()), given, strict=False)), typing.Self: own}

    envs: dict[type, Env] = {cls: env_of(cls, ()) for cls in kind.__mro__}
    envs[kind] = env_of(kind, args)
    found = {kind}
    for cls in kind.__mro__:
        for base in cls.__dict__.get("__orig_bases__", ()):
            origin = typing.get_origin(base)
            if origin in envs and origin is not typing.Generic and origin not in found:
                found.add(origin)
                envs[origin] = env_of(origin, tuple(_compile(arg, envs[cls], {}) for arg in typing.get_args(base)))
    return envs
