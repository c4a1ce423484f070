"""Any value as a JSON tree, without knowing what it should be; and the tree as the value again.

A tree is made of None, bool, int, float, str, list and dict only. It is handed to the C encoder of ``json`` whole.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from continuum.values.enums import read_enum, write_enum
from continuum.values.references import Reference, reference_by_tag, reference_for
from continuum.values.refusals import MAX_DEPTH, Refusal, TooDeep, not_durable, step
from continuum.values.scalars import READERS, UNSAFE, WRITERS, read_scalar

__all__ = ["CONTAINER_TAGS", "OWN_TAGS", "as_object", "canonical", "from_tree", "is_tag", "tag_of", "to_tree"]

CONTAINER_TAGS: dict[type, str] = {tuple: "~tuple", set: "~set", frozenset: "~frozenset"}
_CONTAINERS: dict[str, type] = {tag: kind for kind, tag in CONTAINER_TAGS.items()}
OWN_TAGS = frozenset({*READERS, *_CONTAINERS, "~dict", "~enum", "~any"})

Walk = Callable[[Any, int], Any]
"""Value and depth to tree: ``to_tree``, or the same under an annotation."""


def to_tree(value: Any, depth: int = 0) -> Any:
    """Return the tree of a value. ``depth`` is the number of containers around it. Raises ``Refusal``."""
    kind = type(value)
    write = WRITERS.get(kind)
    if write is not None:
        return write(value)
    if kind is dict:
        return dict_tree(value, depth, to_tree, to_tree)
    if kind is list:
        return list_tree(value, depth, to_tree)
    if kind in CONTAINER_TAGS:
        return sequence_tree(value, depth, to_tree)
    if isinstance(value, Enum):
        return write_enum(value)
    reference = reference_for(value)
    if reference is not None:
        return _reference_tree(reference, value, depth)
    if kind.__module__ == "freezegun.api" and kind.__mro__[1] in WRITERS:
        return WRITERS[kind.__mro__[1]](value)  # datetime and date, while a test freezes time
    raise _refused(value)


def _reference_tree(reference: Reference, value: Any, depth: int) -> dict[str, Any]:
    try:
        key = reference.encode(value)
    except (ValueError, TypeError) as exc:
        raise not_durable(type(value).__name__, str(exc)) from exc
    return {reference.tag: to_tree(key, depth + 1)}


def list_tree(value: Any, depth: int, item: Walk) -> list[Any]:
    """The trees of the elements, each made by ``item``."""
    depth += 1
    if depth > MAX_DEPTH:
        raise TooDeep
    out: list[Any] = []
    add = out.append
    try:
        for element in value:
            add(item(element, depth))
    except Refusal as refusal:
        raise refusal.passing(f"[{len(out)}]" if type(value) in (list, tuple) else "[*]", value) from None
    return out


def sequence_tree(value: Any, depth: int, item: Walk) -> Any:
    """The tree of a list, tuple, set or frozenset."""
    kind = type(value)
    if kind is list:
        return list_tree(value, depth, item)
    elements = list_tree(value, depth, item)
    if kind is not tuple:
        # The order of a set differs from process to process; the text of equal values must not.
        elements.sort(key=canonical)
    return {CONTAINER_TAGS[kind]: elements}


def canonical(tree: Any) -> str:
    """The text of a tree, to sort by."""
    from continuum.values.jsontext import dump

    return dump(tree)


def dict_tree(value: dict[Any, Any], depth: int, key_walk: Walk, value_walk: Walk) -> dict[str, Any]:
    """The tree of a dictionary: an object where the keys allow it, else a tag with pairs."""
    depth += 1
    if depth > MAX_DEPTH:
        raise TooDeep
    out: dict[str, Any] = {}
    plain = True
    key: Any = None
    try:
        for key, item in value.items():
            if plain and (type(key) is not str or UNSAFE(key)):
                plain = False
            if plain:
                out[key] = value_walk(item, depth)
            else:
                break
    except Refusal as refusal:
        raise refusal.passing(step(key), value) from None
    if plain and not is_tag(out):
        return out
    return pairs_tree(value, depth, key_walk, value_walk)


def pairs_tree(value: dict[Any, Any], depth: int, key_walk: Walk, value_walk: Walk) -> dict[str, Any]:
    """The tree of a dictionary whose keys an object cannot have. ``depth`` includes the dictionary itself."""
    pairs: list[Any] = []
    for key, item in value.items():
        try:
            written = key_walk(key, depth)
        except Refusal as refusal:
            raise refusal.passing(f".keys()[{len(pairs)}]", value) from None
        try:
            pairs.append([written, value_walk(item, depth)])
        except Refusal as refusal:
            raise refusal.passing(step(key), value) from None
    return {"~dict": pairs}


def as_object(tree: Any) -> bool:
    """Whether a tree is an object that stands for itself, and so could be taken for a dataclass."""
    return type(tree) is dict and not is_tag(tree)


def is_tag(tree: dict[str, Any]) -> bool:
    return len(tree) == 1 and next(iter(tree))[:1] == "~"


def tag_of(tree: Any) -> str | None:
    """The tag of a tree, or None if it stands for itself."""
    return next(iter(tree)) if type(tree) is dict and is_tag(tree) else None


def from_tree(tree: Any) -> Any:
    """The inverse of ``to_tree``. The tree is used up: its lists and objects become part of the value."""
    kind = type(tree)
    if kind is dict:
        if len(tree) == 1:
            ((tag, payload),) = tree.items()
            if tag[:1] == "~":
                return from_tag(tag, payload)
        return _restore_in_place(tree, tree.items(), step)
    if kind is list:
        return _restore_in_place(tree, enumerate(tree), lambda index: f"[{index}]")
    return tree


def _restore_in_place(tree: Any, items: Any, name: Callable[[Any], str]) -> Any:
    place: Any = None
    try:
        for place, item in items:
            if type(item) is dict or type(item) is list:
                tree[place] = from_tree(item)
    except Refusal as refusal:
        raise refusal.passing(name(place), tree) from None
    return tree


def from_tag(tag: str, payload: Any) -> Any:
    """The value of a tag that no annotation has a say in."""
    if tag in READERS:
        return read_scalar(tag, payload)
    if tag in _CONTAINERS:
        return read_sequence(tag, payload, lambda _index, item: from_tree(item))
    if tag == "~dict":
        return read_pairs(payload, from_tree, from_tree)
    if tag == "~enum":
        return read_enum(payload)
    if tag == "~any":
        return from_tree(payload)
    reference = reference_by_tag(tag)
    if reference is None:
        raise Refusal(f'the tag "{tag}" is unknown to this version of Continuum')
    value = from_tree(payload)
    try:
        return reference.decode(value)
    except Exception as exc:  # whatever the registered function raises
        raise Refusal(f'the tag "{tag}" is malformed: {exc}') from exc


def read_sequence(tag: str, payload: Any, item: Callable[[int, Any], Any]) -> Any:
    """The tuple or set of a tag, its elements made by ``item`` from index and tree."""
    if type(payload) is not list:
        raise Refusal(f'the tag "{tag}" is malformed: it holds a list')
    out: list[Any] = []
    try:
        for index, element in enumerate(payload):
            out.append(item(index, element))
    except Refusal as refusal:
        raise refusal.passing(f"[{len(out)}]", payload) from None
    try:
        return _CONTAINERS[tag](out)
    except TypeError as exc:
        raise Refusal(f'the tag "{tag}" is malformed: {exc}') from exc


def read_pairs(payload: Any, key: Callable[[Any], Any], value: Callable[[Any], Any]) -> dict[Any, Any]:
    """The dictionary of a ``~dict`` tag."""
    if type(payload) is not list or not all(type(pair) is list and len(pair) == 2 for pair in payload):
        raise Refusal('the tag "~dict" is malformed: it holds a list of [key, value]')
    out: dict[Any, Any] = {}
    for index, pair in enumerate(payload):
        try:
            found = key(pair[0])
        except Refusal as refusal:
            raise refusal.passing(f".keys()[{index}]", payload) from None
        try:
            item = value(pair[1])
        except Refusal as refusal:
            raise refusal.passing(step(found), payload) from None
        try:
            out[found] = item
        except TypeError as exc:
            raise Refusal(f'the tag "~dict" is malformed: {exc}') from exc
    return out


_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
)


def annotate_with(name: str) -> str:
    return f"annotate the parameter, field or return value with {name} so that it can be restored"


def _refused(value: Any) -> Refusal:
    kind = type(value)
    name = kind.__name__
    if isinstance(value, type):
        return not_durable(f"class {value.__qualname__}", "pass its name instead")
    if isinstance(value, _FUNCTIONS):
        return not_durable("function")
    if isinstance(value, Coroutine) or inspect.isawaitable(value):
        return not_durable(name, "await it and pass its result")
    if (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "model_validate")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    ):
        return not_durable(name, annotate_with(name))
    for base in kind.__mro__[1:]:
        if base in WRITERS or base in CONTAINER_TAGS or base in (dict, list):
            plain = base.__name__
            return not_durable(name, f"it is a subclass of {plain} and would come back as {plain}: pass plain {plain}")
    if isinstance(value, bytearray | memoryview):
        return not_durable(name, "pass bytes(value)")
    if name == "__proxy__":
        return not_durable("a lazy object of Django", "pass what it stands for, such as str(value)")
    if hasattr(value, "__next__") or hasattr(value, "__iter__"):
        return not_durable(name, "pass a list, tuple, set or dict")
    return not_durable(name)
