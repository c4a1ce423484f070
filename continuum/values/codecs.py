"""Codecs: values to trees and back where an annotation says what they are.

A codec serves the values its annotation describes and leaves all others to the general rules of ``trees``, so that a
value of another type than annotated is not an error and comes back as what it was. Only where its tree could then be
taken for one of the codec's own is it wrapped in the tag ``~any``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cached_property
from typing import Any

from continuum.values.enums import enum_reference, read_enum, write_enum
from continuum.values.refusals import Refusal
from continuum.values.trees import (
    CONTAINER_TAGS,
    as_object,
    dict_tree,
    from_tree,
    pairs_tree,
    read_pairs,
    read_sequence,
    sequence_tree,
    step,
    tag_of,
    to_tree,
)

__all__ = [
    "SEQUENCES",
    "Codec",
    "EnumCodec",
    "FixedTupleCodec",
    "LazyCodec",
    "MappingCodec",
    "SequenceCodec",
    "UnresolvedCodec",
    "reader",
    "writer",
]

SEQUENCES = frozenset({list, *CONTAINER_TAGS})


class Codec:
    """Turns values into trees (``encode``) and trees into values (``decode``). Both raise ``Refusal``.

    The other methods are for unions, which have to find the alternative that a value, or a tree, belongs to.
    """

    def encode(self, value: Any, depth: int) -> Any:
        raise NotImplementedError

    def decode(self, tree: Any) -> Any:
        raise NotImplementedError

    def owns(self, value: Any) -> bool:
        """Whether the value is one of those this codec is there for."""
        return False

    def encode_distinctly(self, value: Any, depth: int) -> Any:
        """Encode a value it owns such that no codec of another type recognises the tree, if there is such a form."""
        return self.encode(value, depth)

    def recognises(self, tree: Any) -> bool:
        """Whether the tree looks like one of a value it owns."""
        return False

    def may_fit(self, tree: dict[str, Any]) -> bool:
        """Whether an object that nobody recognises can be decoded all the same."""
        return False

    def __str__(self) -> str:
        return type(self).__name__


def writer(codec: Codec | None) -> Callable[[Any, int], Any]:
    """How to write a value that a codec may know."""
    return to_tree if codec is None else codec.encode


def reader(codec: Codec | None) -> Callable[[Any], Any]:
    """How to read a tree that a codec may know."""
    return from_tree if codec is None else codec.decode


class EnumCodec(Codec):
    """An enumeration: a member is its value where that is a plain string or number, else a tag."""

    def __init__(self, kind: type[Enum]) -> None:
        self.kind = kind

    def owns(self, value: Any) -> bool:
        return type(value) is self.kind

    def encode_distinctly(self, value: Any, depth: int) -> Any:
        return write_enum(value, enum_reference(self.kind))

    def recognises(self, tree: Any) -> bool:
        if tag_of(tree) != "~enum":
            return type(tree) is str or type(tree) is int
        payload = tree["~enum"]
        return type(payload) is list and payload[:1] == [enum_reference(self.kind)]

    def __str__(self) -> str:
        return self.kind.__name__

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) is self.kind:
            plain = value.value
            if (type(plain) is str or type(plain) is int) and to_tree(plain) is plain and self._member(plain) is value:
                return plain
            return write_enum(value, enum_reference(self.kind))
        tree = to_tree(value, depth)
        return {"~any": tree} if type(tree) is str or type(tree) is int else tree

    def decode(self, tree: Any) -> Any:
        if type(tree) is str or type(tree) is int:
            member = self._member(tree)
            if member is None:
                raise Refusal(f"{ascii(tree)[:80]} is no value of {self.kind.__name__}")
            return member
        if tag_of(tree) == "~enum":
            return read_enum(tree["~enum"], (self.kind,))
        return from_tree(tree)

    def _member(self, value: Any) -> Enum | None:
        try:
            return self.kind(value)
        except Exception:  # ValueError, or whatever the class's own code raises
            return None


class SequenceCodec(Codec):
    """Lists, tuples and sets whose elements have a codec."""

    def __init__(self, item: Codec, kinds: frozenset[type] = SEQUENCES) -> None:
        self.item = item
        self.kinds = kinds

    def owns(self, value: Any) -> bool:
        return type(value) in self.kinds

    def recognises(self, tree: Any) -> bool:
        return _kind_of(tree) in self.kinds

    def encode(self, value: Any, depth: int) -> Any:
        return sequence_tree(value, depth, self.item.encode) if type(value) in SEQUENCES else to_tree(value, depth)

    def decode(self, tree: Any) -> Any:
        if type(tree) is list:
            return _read_list(tree, lambda _index, item: self.item.decode(item))
        tag = tag_of(tree)
        if tag in CONTAINER_TAGS.values():
            return read_sequence(tag, tree[tag], lambda _index, item: self.item.decode(item))
        return from_tree(tree)


class FixedTupleCodec(Codec):
    """Tuples (and lists) that have a codec by position. Elements beyond the annotated ones go by the general rules."""

    def __init__(self, items: tuple[Codec | None, ...]) -> None:
        self.items = items

    def owns(self, value: Any) -> bool:
        return type(value) is tuple and len(value) == len(self.items)

    def recognises(self, tree: Any) -> bool:
        return _kind_of(tree) is tuple and len(tree["~tuple"]) == len(self.items)

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) is not tuple and type(value) is not list:
            return to_tree(value, depth)
        writers = iter([writer(codec) for codec in self.items])
        return sequence_tree(value, depth, lambda item, level: next(writers, to_tree)(item, level))

    def decode(self, tree: Any) -> Any:
        if type(tree) is list:
            return _read_list(tree, self._read)
        if tag_of(tree) == "~tuple":
            return read_sequence("~tuple", tree["~tuple"], self._read)
        return from_tree(tree)

    def _read(self, index: int, tree: Any) -> Any:
        return reader(self.items[index] if index < len(self.items) else None)(tree)


def _kind_of(tree: Any) -> type | None:
    """The kind of sequence of a tree, if it is one."""
    if type(tree) is list:
        return list
    tag = tag_of(tree)
    if tag is None or type(tree[tag]) is not list:
        return None
    return next((kind for kind, own in CONTAINER_TAGS.items() if own == tag), None)


def _read_list(tree: list[Any], read: Callable[[int, Any], Any]) -> list[Any]:
    index = 0
    try:
        for index, item in enumerate(tree):
            tree[index] = read(index, item)
    except Refusal as refusal:
        raise refusal.passing(f"[{index}]", tree) from refusal.__cause__
    return tree


class MappingCodec(Codec):
    """Dictionaries whose keys or values have a codec."""

    def __init__(self, key: Codec | None, value: Codec | None) -> None:
        self.key = key
        self.value = value

    def owns(self, value: Any) -> bool:
        return type(value) is dict

    def encode_distinctly(self, value: Any, depth: int) -> Any:
        return pairs_tree(value, depth + 1, writer(self.key), writer(self.value))

    def recognises(self, tree: Any) -> bool:
        return as_object(tree) or tag_of(tree) == "~dict"

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) is not dict:
            return to_tree(value, depth)
        return dict_tree(value, depth, writer(self.key), writer(self.value))

    def decode(self, tree: Any) -> Any:
        tag = tag_of(tree)
        if tag == "~dict":
            return read_pairs(tree["~dict"], reader(self.key), reader(self.value))
        if tag is not None or type(tree) is not dict:
            return from_tree(tree)
        read = reader(self.value)
        name = ""
        try:
            for name, item in tree.items():
                tree[name] = read(item)
        except Refusal as refusal:
            raise refusal.passing(step(name), tree) from refusal.__cause__
        return tree


class LazyCodec(Codec):
    """The codec of an annotation that is still being worked out, because it contains itself."""

    def __init__(self, resolve: Callable[[], Codec | None]) -> None:
        self._resolve = resolve

    @cached_property
    def _codec(self) -> Codec | None:
        return self._resolve()

    def owns(self, value: Any) -> bool:
        return self._codec is not None and self._codec.owns(value)

    def encode_distinctly(self, value: Any, depth: int) -> Any:
        return writer(self._codec)(value, depth) if self._codec is None else self._codec.encode_distinctly(value, depth)

    def recognises(self, tree: Any) -> bool:
        return self._codec is not None and self._codec.recognises(tree)

    def encode(self, value: Any, depth: int) -> Any:
        return writer(self._codec)(value, depth)

    def decode(self, tree: Any) -> Any:
        return reader(self._codec)(tree)


class UnresolvedCodec(Codec):
    """An annotation that names something unknown. What needs no annotation works; the rest is told why it does not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, value: Any, depth: int) -> Any:
        try:
            return to_tree(value, depth)
        except Refusal as refusal:
            refusal.reason += (
                f" (its annotation {self.name!r} could not be resolved: is that imported for type checking only?)"
            )
            raise

    def decode(self, tree: Any) -> Any:
        return from_tree(tree)
