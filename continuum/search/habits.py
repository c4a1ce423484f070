"""Which searches are gathered at once, since looking in order was in vain the last time and gathering was quick.

Nothing here is remembered for certain: a search that has come to take long is forgotten, and goes the usual way again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import perf_counter
from typing import TypeVar

__all__ = ["Habits"]

T = TypeVar("T")


# A search that takes long so often, one time after the other, is no matter of chance.
_TIMES = 3


class Habits:
    """Remembers searches of one process, up to a number of them.

    Args:
        quick: seconds that gathering takes at most for a search to be remembered.
        most: how many searches are remembered; one more, and all are forgotten.
        clock: tells the time in seconds.
    """

    def __init__(self, quick: float, most: int = 1000, clock: Callable[[], float] = perf_counter) -> None:
        self._quick, self._most, self._clock = quick, most, clock
        # Their hashes, which take no memory: of two that have the same, one goes another way, to the same end. With how
        # often gathering took long since it was quick; not at all, of those that are remembered.
        self._known: dict[int, int] = {}

    def __contains__(self, search: Hashable) -> bool:
        return self._known.get(hash(search)) == 0

    def gather(self, search: Hashable, gather: Callable[[], T]) -> T:
        """Gather, and remember the search if that was quick."""
        began = self._clock()
        found = gather()
        late = self._clock() - began > self._quick
        key = hash(search)
        if key not in self._known and len(self._known) >= self._most:
            self._known.clear()
        self._known[key] = self._known.get(key, 0) + 1 if late else 0
        return found

    def is_slow(self, search: Hashable) -> bool:
        """Tell whether gathering has taken long time and again."""
        return self._known.get(hash(search), 0) >= _TIMES

    def forget(self, search: Hashable) -> None:
        """Forget a search."""
        self._known.pop(hash(search), None)
