"""The form of a rule, and how to write many names of one module."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rule", "within"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Something that workflow code may not do.

    Attributes:
        id: ``D101``.
        title: what it is, as a noun: one line of the table in the documentation.
        does: what code that does it does, as a verb phrase that follows a name: "``time.time()`` *reads the clock*".
        advice: what to do instead, as a sentence.
        names: dotted names of functions, classes, objects and methods that are denied; ``package.*`` is everything in
            it that can be called. ``name(1)`` is denied only when called with no more than one argument.
        instances: classes whose methods are denied, called on any instance of them or of a subclass.
        allowed: dotted names that are not denied, though another entry covers them.
        certain: a finding is an error; else, as it cannot be judged, a warning.
    """

    id: str
    title: str
    does: str
    advice: str
    names: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    certain: bool = True


def within(module: str, names: str) -> tuple[str, ...]:
    """Return dotted names: of a module or class, and names in it, separated by spaces."""
    return tuple(f"{module}.{name}" for name in names.split())
