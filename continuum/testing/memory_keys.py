"""Idempotency keys in memory: of each activity and key there is one result, also when two runs ask at the same time."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

__all__ = ["Claim", "Keys"]

Place = tuple[str, str]


class Claim(Enum):
    """What asking for a key has come to."""

    OURS = "ours"
    HELD = "held"
    DONE = "done"


class Keys:
    """The keys of one world, each held by a call or with a result. A place is an activity's name and a key."""

    def __init__(self) -> None:
        self.results: dict[Place, str] = {}
        self._holders: dict[Place, Any] = {}
        self._waiting: dict[Place, list[Callable[[], None]]] = {}

    def ask(self, place: Place, caller: Any, again: Callable[[], None]) -> Claim:
        """Claim a key for a call; where another holds it, ``again`` is called once that is over."""
        if place in self.results:
            return Claim.DONE
        if self._holders.setdefault(place, caller) == caller:
            return Claim.OURS
        self._waiting.setdefault(place, []).append(again)
        return Claim.HELD

    def give(self, place: Place, caller: Any, result: str | None) -> None:
        """A call has a result (JSON text), or with None has failed or is given up; nothing happens if it has no key."""
        if self._holders.get(place) != caller:
            return
        del self._holders[place]
        if result is not None:
            self.results[place] = result
        for again in self._waiting.pop(place, []):
            again()
