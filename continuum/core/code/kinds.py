"""What can be known of the value of an expression that is not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continuum.core.code.scopes import Scope

__all__ = ["Inst", "Items", "Local", "Member", "Named", "Obj", "Super", "Value", "name_of", "same"]


class Value:
    """What is known of the value of an expression."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Obj(Value):
    """A real object; ``path`` is the dotted name it was reached by, where it came out of a module."""

    value: Any
    path: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Inst(Value):
    """Some instance of a class; ``items`` are the types of what it holds, where its annotation says so."""

    cls: Any
    items: tuple[Value | None, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Member(Value):
    """An attribute as it stands in a class: ``raw`` is what was found; ``owner`` the class it was looked up in."""

    owner: type
    name: str
    raw: Any
    of_instance: bool


@dataclass(frozen=True, slots=True, eq=False)
class Named(Value):
    """Something of a module that is not loaded."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Local(Value):
    """A function or class that is defined inside the function."""

    node: Any
    scope: Scope


@dataclass(frozen=True, slots=True, eq=False)
class Items(Value):
    """A tuple whose items are known one by one."""

    values: tuple[Value | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Super(Value):
    """What ``super()`` gives in a method that stands in the class ``after``, called on an ``owner``."""

    owner: type
    after: type


def name_of(value: Any) -> tuple[str, str] | None:
    """Return module and qualified name of what a value is, if it is an object that has such a name."""
    held = value.value if isinstance(value, Obj) else None
    module, name = getattr(held, "__module__", None), getattr(held, "__qualname__", None)
    return (module, name) if isinstance(module, str) and isinstance(name, str) else None


def same(a: Value | None, b: Value | None) -> bool:
    """Tell whether two values are known to be alike."""
    if type(a) is not type(b) or a is None:
        return False
    match a, b:
        case Obj(), Obj():
            return a.value is b.value
        case Inst(), Inst():
            return a.cls is b.cls
        case Member(), Member():
            return a.raw is b.raw and a.owner is b.owner
        case Named(), Named():
            return a.name == b.name
        case Local(), Local():
            return a.node is b.node
        case Items(), Items():
            return len(a.values) == len(b.values) and all(map(same, a.values, b.values))
    return False
