"""References: values that are kept elsewhere, such as rows, and travel as the key that finds them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Reference", "is_reference_class", "reference_by_tag", "reference_for", "register_reference"]


@dataclass(frozen=True, slots=True)
class Reference:
    """One kind of reference, as registered."""

    tag: str
    classes: tuple[type, ...]
    matches: Callable[[Any], bool]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_registered: dict[str, Reference] = {}


def register_reference(
    name: str,
    match: type | tuple[type, ...] | Callable[[Any], bool],
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
) -> None:
    """Let values of a kind be durable, as references.

    Registering a name again replaces what it stood for. Values of the built-in kinds never get here.

    Args:
        name: names the tag, which is ``~`` and this name; part of stored data, so it must not change.
        match: the class or classes whose instances these are, or a predicate.
        encode: takes the value and returns a durable value, usually a small dictionary. It raises ``ValueError`` or
            ``TypeError``, saying why, if this very value cannot be referred to.
        decode: takes that durable value and returns what the reader shall see. It gets whatever the text holds, so it
            checks what it is given and raises ``ValueError`` or ``TypeError`` if that is malformed.

    Raises:
        ValueError: the name is not a lower-case identifier, or is one of the codec's own tags.
    """
    from continuum.values.trees import OWN_TAGS

    tag = f"~{name}"
    if not (name.isascii() and name.isidentifier() and name == name.lower()) or tag in OWN_TAGS:
        raise ValueError(f"a reference cannot be named {name!r}")
    classes = match if isinstance(match, tuple) else (match,) if isinstance(match, type) else ()
    predicate = (lambda value: isinstance(value, classes)) if isinstance(match, type | tuple) else match
    _registered[tag] = Reference(tag, classes, predicate, encode, decode)


def reference_for(value: Any) -> Reference | None:
    """The kind of reference a value is to travel as, if any."""
    return next((reference for reference in tuple(_registered.values()) if reference.matches(value)), None)


def is_reference_class(kind: type) -> bool:
    """Whether instances of a class travel as references, as far as classes were registered for that."""
    return any(issubclass(kind, reference.classes) for reference in tuple(_registered.values()))


def reference_by_tag(tag: str) -> Reference | None:
    """The kind of reference a tag stands for, if any."""
    return _registered.get(tag)
