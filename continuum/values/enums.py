"""Enum members: written with the name of their class, which is looked up and never imported."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any

from continuum.values.refusals import Refusal, not_durable

__all__ = ["enum_reference", "read_enum", "read_member", "write_enum", "write_member"]


def enum_reference(kind: type[Enum]) -> str:
    """``module:Qualified.name`` of an enumeration."""
    return f"{kind.__module__}:{kind.__qualname__}"


def write_member(member: Enum) -> Any:
    """What tells a member inside its class: the name, or the number of flags that have no name together."""
    kind = type(member)
    if member.name is not None and kind.__members__.get(member.name) is member:
        return member.name
    if type(member.value) is int and kind(member.value) is member:
        return member.value
    raise not_durable(f"{member!r}, which is no member of its own class,")


def write_enum(member: Enum, reference: str | None = None) -> Any:
    """The tag of a member. Without a given ``reference``, its class must be one that other processes can find."""
    kind = type(member)
    if reference is None:
        reference = enum_reference(kind)
        if kind.__module__ == "__main__" or _find(reference) is not kind:
            raise not_durable(
                f"a member of {kind.__qualname__}",
                f"the class cannot be found again by that name in module {kind.__module__}: define it at the top of a "
                f"module, or annotate the parameter, field or return value with it",
            )
    return {"~enum": [reference, write_member(member)]}


def read_enum(payload: Any, known: tuple[type[Enum], ...] = ()) -> Enum:
    """The member a tag stands for; ``known`` are the classes an annotation offers."""
    if type(payload) is not list or len(payload) != 2 or type(payload[0]) is not str:
        raise Refusal('the tag "~enum" is malformed: it holds [class, member]')
    reference, member = payload
    kind = next((kind for kind in known if enum_reference(kind) == reference), None) or _find(reference)
    if kind is None:
        raise Refusal(f"the enumeration {reference} is not loaded in this process")
    return read_member(kind, member)


def read_member(kind: type[Enum], member: Any) -> Enum:
    """The inverse of ``write_member``."""
    if type(member) is str and member in kind.__members__:
        return kind.__members__[member]
    if type(member) is int:
        try:
            return kind(member)
        except ValueError:
            pass
    raise Refusal(f"{kind.__qualname__} has no member {ascii(member)[:80]}")


def _find(reference: str) -> type[Enum] | None:
    # Namespaces are read as plain dictionaries: a lookup by attribute could run code, such as a module's __getattr__.
    module, _, qualname = reference.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        namespace = getattr(found, "__dict__", None) if found is not None else None
        found = namespace.get(part) if namespace is not None else None
        if not isinstance(found, type):
            return None
    return found if issubclass(found, Enum) else None
