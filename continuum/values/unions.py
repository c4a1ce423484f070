"""Codecs of unions: which alternative a value belongs to, told from the value and again from its tree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from continuum.values.codecs import Codec, MappingCodec, SequenceCodec, UnresolvedCodec
from continuum.values.refusals import Refusal, not_durable
from continuum.values.trees import as_object, from_tree, tag_of, to_tree

__all__ = ["UnionCodec", "union_of"]


def union_of(codecs: Iterable[Codec], *, open_to_dicts: bool) -> Codec | None:
    """The codec of a union, from those of its alternatives that have one.

    Args:
        codecs: the codecs.
        open_to_dicts: whether another alternative, which needs no codec, may be a dictionary.
    """
    flat: list[Codec] = []
    for codec in codecs:
        flat += codec.alternatives if isinstance(codec, UnionCodec) else [codec]
        open_to_dicts = open_to_dicts or (isinstance(codec, UnionCodec) and codec.open_to_dicts)
    alternatives = _merge_containers(list(dict.fromkeys(flat)))
    if len(alternatives) <= 1:
        return alternatives[0] if alternatives else None
    return UnionCodec(alternatives, open_to_dicts)


def _merge_containers(codecs: list[Codec]) -> list[Codec]:
    """Containers of one kind with different contents become one, whose contents are a union."""
    merged: dict[Any, Codec] = {}
    for codec in codecs:
        if isinstance(codec, SequenceCodec):
            other = merged.get(codec.kinds)
            if isinstance(other, SequenceCodec):
                item = union_of([other.item, codec.item], open_to_dicts=False)
                assert item is not None
                codec = SequenceCodec(item, codec.kinds)
            merged[codec.kinds] = codec
        elif isinstance(codec, MappingCodec):
            other = merged.get(MappingCodec)
            if isinstance(other, MappingCodec):
                keys, items = ([x for x in pair if x] for pair in ((other.key, codec.key), (other.value, codec.value)))
                codec = MappingCodec(union_of(keys, open_to_dicts=False), union_of(items, open_to_dicts=len(items) < 2))
            merged[MappingCodec] = codec
        else:
            merged[codec] = codec
    return list(merged.values())


class UnionCodec(Codec):
    """Two or more alternatives that have a codec each.

    Classes with fields are told apart by their exact set of fields, enumerations by their class, containers by their
    kind. A value that could not be told apart again is refused.
    """

    def __init__(self, alternatives: list[Codec], open_to_dicts: bool) -> None:
        self.alternatives = alternatives
        self.open_to_dicts = open_to_dicts
        self._fallback = next((codec for codec in alternatives if isinstance(codec, UnresolvedCodec)), None)

    def encode(self, value: Any, depth: int) -> Any:
        owners = [codec for codec in self.alternatives if codec.owns(value)]
        if not owners:
            tree = to_tree(value, depth) if self._fallback is None else self._fallback.encode(value, depth)
            return {"~any": tree} if as_object(tree) or self._recognising(tree) else tree
        rivals = owners
        if len(owners) == 1:
            tree = owners[0].encode(value, depth)
            if self._recognising(tree) != owners:
                tree = owners[0].encode_distinctly(value, depth)
            rivals = self._recognising(tree)
            if rivals == owners:
                return tree
        raise not_durable(
            type(value).__name__,
            f"its annotation also allows {_names(c for c in rivals if c is not owners[0])}, and the two cannot be told "
            "apart by their fields: give one a field that the other does not have",
        )

    def decode(self, tree: Any) -> Any:
        if tag_of(tree) == "~any":
            return from_tree(tree)
        found = self._recognising(tree)
        if not found and as_object(tree):
            # The class may have gained fields since, all of which have a default.
            found = [codec for codec in self.alternatives if codec.may_fit(tree)]
            if not found and not self.open_to_dicts:
                raise Refusal(
                    "an object with the fields {} fits no alternative of the annotation".format(", ".join(tree))
                )
        if len(found) > 1:
            raise Refusal(f"{_names(found)} cannot be told apart by their fields")
        return found[0].decode(tree) if found else from_tree(tree)

    def _recognising(self, tree: Any) -> list[Codec]:
        found = [codec for codec in self.alternatives if codec.recognises(tree)]
        # A dictionary of anything takes what no class with fields claims.
        return [codec for codec in found if not isinstance(codec, MappingCodec)] or found


def _names(codecs: Iterable[Codec]) -> str:
    return " and ".join(map(str, codecs))
