"""Refusals: how a walk through a value reports what it cannot store, and where."""

from __future__ import annotations

from typing import Any

from continuum.exceptions import DurableValueError

__all__ = ["MAX_DEPTH", "Refusal", "TooDeep", "not_durable", "step"]

MAX_DEPTH = 200
"""How many containers a value may have inside one another."""


class Refusal(Exception):
    """Raised deep inside a walk. Every container it passes on its way out adds where it was, so the walk itself keeps
    no path: it costs nothing until something is wrong.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trail: list[tuple[str, int]] = []

    def passing(self, step: str, container: object) -> Refusal:
        """Note that the trouble lies at ``step`` inside ``container``."""
        self.trail.append((step, id(container)))
        return self

    def error(self, path: str) -> DurableValueError:
        """The error to show, for a walk that began at ``path``."""
        return DurableValueError(path + "".join(step for step, _ in reversed(self.trail)), self.reason)


class TooDeep(Refusal):
    """More than ``MAX_DEPTH`` containers inside one another, which is how a cycle looks like as well."""

    def __init__(self) -> None:
        super().__init__(f"a value nested more than {MAX_DEPTH} levels deep is not durable")

    def error(self, path: str) -> DurableValueError:
        first_seen: dict[int, str] = {}
        place = path
        for step, container in reversed(self.trail):
            if container in first_seen:
                return DurableValueError(
                    place, f"a value that contains itself ({first_seen[container]}) is not durable"
                )
            first_seen[container] = place
            place += step
        shown = place if len(place) <= 120 else f"{place[:100]}…"
        return DurableValueError(shown, self.reason)


def not_durable(what: str, advice: str = "") -> Refusal:
    """The usual refusal: "function is not durable", with advice where there is any."""
    return Refusal(f"{what} is not durable; {advice}" if advice else f"{what} is not durable")


def step(key: Any) -> str:
    """How a path goes into a dictionary: ``.lines``, or ``['unit price']`` where the key is no name."""
    if type(key) is str and key.isidentifier():
        return f".{key}"
    shown = ascii(key)
    return f"[{shown}]" if len(shown) <= 60 else f"[{shown[:50]}…]"
