"""Which searches are gathered at once, since looking in order was in vain the last time and gathering was quick.

Nothing here is remembered for certain: a search that has come to take long is forgotten, and goes the usual way again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import perf_counter
from typing import TypeVar

__all__ = ["Habits"]

T = TypeVar("T")


class Habits:
    """Remembers searches of one process, up to a number of them.

    Args:
        quick: seconds that gathering takes at most for a search to be remembered.
        most: how many searches are remembered; one more, and all are forgotten.
        clock: tells the time in seconds.
    """

    def __init__(self, quick: float, most: int = 1000, clock: Callable[[], float] = perf_counter) -> None:
        self._quick, self._most, self._clock = quick, most, clock
        # Their hashes, which take no memory: of two that have the same, one goes another way, to the same end.
        self._known: set[int] = set()

    def __contains__(self, search: Hashable) -> bool:
        return hash(search) in self._known

    def gather(self, search: Hashable, gather: Callable[[], T]) -> T:
        """Gather, and remember the search if that was quick."""
        began = self._clock()
        found = gather()
        if self._clock() - began > self._quick:
            self._known.discard(hash(search))
        else:
            self.remember(search)
        return found

    def remember(self, search: Hashable) -> None:
        """Remember a search."""
        if search not in self and len(self._known) >= self._most:
            self._known.clear()
        self._known.add(hash(search))
