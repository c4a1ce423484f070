"""Codecs of classes with named fields: dataclasses, named tuples, typed dictionaries and pydantic models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from continuum.values.codecs import Codec, reader, writer
from continuum.values.refusals import MAX_DEPTH, Refusal, TooDeep, not_durable
from continuum.values.scalars import UNSAFE, WRITERS
from continuum.values.trees import as_object, from_tree, is_tag, step, tag_of, to_tree

__all__ = ["DataclassCodec", "ModelCodec", "NamedTupleCodec", "ObjectCodec", "TypedDictCodec"]

_MISSING = object()


class ObjectCodec(Codec):
    """Base of the codecs of classes with named fields: an instance is a plain object of its fields.

    Args:
        kind: the class.
        fields: returns the codec of each field by name; called at the first use, when classes that refer to one
            another all exist.
    """

    def __init__(self, kind: type, fields: Callable[[], Mapping[str, Codec | None]]) -> None:
        self.kind = kind
        self._fields = fields

    @cached_property
    def _codecs(self) -> Mapping[str, Codec | None]:
        return self._fields()

    @cached_property
    def _writers(self) -> list[tuple[str, Callable[[Any, int], Any] | None]]:
        return [(name, None if codec is None else codec.encode) for name, codec in self._codecs.items()]

    @cached_property
    def _readers(self) -> dict[str, Callable[[Any], Any]]:
        return {name: reader(codec) for name, codec in self._codecs.items()}

    @cached_property
    def names(self) -> frozenset[str]:
        """The fields an instance has."""
        return frozenset(self._codecs)

    @cached_property
    def required(self) -> frozenset[str]:
        """The fields that have no default."""
        return self.names

    def owns(self, value: Any) -> bool:
        """Whether the value is one this codec restores. An instance of a subclass is not."""
        return type(value) is self.kind

    def recognises(self, tree: Any) -> bool:
        return as_object(tree) and tree.keys() == self.names

    def may_fit(self, tree: dict[str, Any]) -> bool:
        return self.required <= tree.keys() <= self.names

    def __str__(self) -> str:
        return self.kind.__name__

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) is not self.kind:
            tree = to_tree(value, depth)
            return {"~any": tree} if as_object(tree) else tree
        return self.encode_own(value, depth)

    def encode_own(self, value: Any, depth: int) -> dict[str, Any]:
        """The object of an instance."""
        depth += 1
        if depth > MAX_DEPTH:
            raise TooDeep
        out: dict[str, Any] = {}
        name = ""
        try:
            for name, write in self._writers:
                item = getattr(value, name, _MISSING)
                if item is _MISSING:
                    raise Refusal("a field that was never set is not durable")
                if write is not None:
                    out[name] = write(item, depth)
                else:  # mostly a single value: to_tree() without the call
                    write_single = WRITERS.get(type(item))
                    out[name] = to_tree(item, depth) if write_single is None else write_single(item)
        except Refusal as refusal:
            raise refusal.passing(f".{name}", value) from refusal.__cause__
        return out

    def decode(self, tree: Any) -> Any:
        return self.decode_own(tree) if as_object(tree) else from_tree(tree)

    def decode_own(self, tree: dict[str, Any]) -> Any:
        """The instance of an object."""
        readers = self._readers
        fields: dict[str, Any] = {}
        name = ""
        try:
            for name, item in tree.items():
                read = readers.get(name)
                if read is None:
                    raise Refusal(f"{self.kind.__name__} has no such field")
                fields[name] = read(item)
        except Refusal as refusal:
            raise refusal.passing(step(name), tree) from refusal.__cause__
        if len(fields) < len(readers) and (missing := self.required - fields.keys()):
            names = ", ".join(name for name in readers if name in missing)
            raise Refusal(f"{self.kind.__name__} needs {names}, which the stored value does not have")
        try:
            return self.build(fields)
        except Exception as exc:  # whatever the class's own code raises
            raise Refusal(f"{self.kind.__name__} cannot be restored: {type(exc).__name__}: {exc}") from exc

    def build(self, fields: dict[str, Any]) -> Any:
        """Make the instance; fields with a default may be absent."""
        raise NotImplementedError


class DataclassCodec(ObjectCodec):
    """A dataclass. It is restored through its constructor, and then set to exactly the state it had."""

    @cached_property
    def _codecs(self) -> Mapping[str, Codec | None]:
        init_vars = [
            field.name
            for field in self.kind.__dataclass_fields__.values()  # type: ignore[attr-defined]
            if field._field_type is dataclasses._FIELD_INITVAR  # type: ignore[attr-defined]
        ]
        if init_vars:
            raise not_durable(
                self.kind.__name__,
                f"it has InitVar parameters ({', '.join(init_vars)}), whose values an instance does not keep",
            )
        if issubclass(self.kind, (str, int, float, bytes, list, dict, tuple, set, frozenset)):
            raise not_durable(self.kind.__name__, "it is a built-in type as well, of which the fields are not all")
        return self._fields()

    @cached_property
    def required(self) -> frozenset[str]:
        missing = dataclasses.MISSING
        return frozenset(
            field.name
            for field in dataclasses.fields(self.kind)
            if field.default is missing
            and field.default_factory is missing
            and (field.init or not self._generated_init)
        )

    @cached_property
    def _generated_init(self) -> bool:
        owner = next(base for base in self.kind.__mro__ if "__init__" in base.__dict__)
        params = owner.__dict__.get("__dataclass_params__")
        own_fields = owner.__dict__.get("__dataclass_fields__")
        return params is not None and params.init and own_fields is self.kind.__dataclass_fields__  # type: ignore

    @cached_property
    def _init_names(self) -> frozenset[str]:
        return frozenset(field.name for field in dataclasses.fields(self.kind) if field.init)

    @cached_property
    def _set_after(self) -> frozenset[str]:
        """Fields to set on the finished instance: ``__post_init__`` may have changed any of them, once more."""
        return self.names if hasattr(self.kind, "__post_init__") else self.names - self._init_names

    def build(self, fields: dict[str, Any]) -> Any:
        if not self._generated_init:
            made = self.kind.__new__(self.kind)
            for field in dataclasses.fields(self.kind):
                if field.name not in fields:
                    factory = field.default_factory
                    fields[field.name] = field.default if factory is dataclasses.MISSING else factory()
                object.__setattr__(made, field.name, fields[field.name])
            return made
        after = self._set_after
        if not after:
            return self.kind(**fields)
        made = self.kind(**{name: item for name, item in fields.items() if name in self._init_names})
        for name, item in fields.items():
            if name in after:
                object.__setattr__(made, name, item)
        return made


class NamedTupleCodec(ObjectCodec):
    """A named tuple."""

    @cached_property
    def required(self) -> frozenset[str]:
        return self.names - self.kind._field_defaults.keys()  # type: ignore[attr-defined]

    def build(self, fields: dict[str, Any]) -> Any:
        defaults = self.kind._field_defaults  # type: ignore[attr-defined]
        return self.kind._make(  # type: ignore[attr-defined]
            [fields[name] if name in fields else defaults[name] for name in self.kind._fields]  # type: ignore
        )


class TypedDictCodec(ObjectCodec):
    """A typed dictionary: a dictionary, some of whose keys have a codec for their values."""

    @cached_property
    def required(self) -> frozenset[str]:
        return frozenset(self.kind.__required_keys__)  # type: ignore[attr-defined]

    def owns(self, value: Any) -> bool:
        return type(value) is dict and self.required <= value.keys() <= self.names

    def recognises(self, tree: Any) -> bool:
        return as_object(tree) and self.required <= tree.keys() <= self.names

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) is not dict or not all(type(key) is str and not UNSAFE(key) for key in value) or is_tag(value):
            return to_tree(value, depth)
        depth += 1
        if depth > MAX_DEPTH:
            raise TooDeep
        out: dict[str, Any] = {}
        key = ""
        try:
            for key, item in value.items():
                out[key] = writer(self._codecs.get(key))(item, depth)
        except Refusal as refusal:
            raise refusal.passing(step(key), value) from refusal.__cause__
        return out

    def decode_own(self, tree: dict[str, Any]) -> Any:
        readers = self._readers
        try:
            for name, item in tree.items():
                tree[name] = readers.get(name, from_tree)(item)
        except Refusal as refusal:
            raise refusal.passing(step(name), tree) from refusal.__cause__
        return tree


class ModelCodec(Codec):
    """A pydantic model, or whatever else has ``model_dump`` and ``model_validate``."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    @cached_property
    def _keys(self) -> tuple[set[str], set[str]]:
        """The keys of its object, by name and by alias."""
        fields = getattr(self.kind, "model_fields", {})
        aliases = {getattr(field, "serialization_alias", None) or name for name, field in fields.items()}
        return set(fields), aliases

    def owns(self, value: Any) -> bool:
        return type(value) is self.kind

    def recognises(self, tree: Any) -> bool:
        return as_object(tree) and tree.keys() in self._keys

    def __str__(self) -> str:
        return self.kind.__name__

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) is not self.kind:
            tree = to_tree(value, depth)
            return tree if tree is None else {"~any": tree}
        # A model may leave out what it holds, so there is a check that it can be restored. With aliases it accepts
        # either those or the names, depending on its configuration.
        for by_alias in (True, False):
            try:
                dumped = value.model_dump(mode="python", round_trip=True, by_alias=by_alias, warnings=False)
                same = self.kind.model_validate(dumped) == value  # type: ignore[attr-defined]
            except (ValueError, TypeError):
                same = False
            if same:
                tree = to_tree(dumped, depth)
                if tree is not None:
                    return tree
        raise not_durable(
            self.kind.__name__,
            "validating what model_dump() returns does not give an equal model, so data would be lost",
        )

    def decode(self, tree: Any) -> Any:
        value = from_tree(tree) if type(tree) is dict or type(tree) is list else tree
        if tree is None or tag_of(tree) == "~any":
            return value
        try:
            return self.kind.model_validate(value)  # type: ignore[attr-defined]
        except Exception as exc:  # pydantic's ValidationError, or what validators raise
            raise Refusal(f"{self.kind.__name__} cannot be restored: {exc}") from exc
