"""Rows of runs that somebody else has locked: the journal goes on with all other runs.

Application code may hold the row of a run for as long as its transaction is open: with ``set_attributes``, or with a
``SELECT ... FOR UPDATE`` of its own. One commit of the journal is for hundreds of runs, and must not wait for that:

* Its statement waits for a lock for a moment only. Then, and for a while from then on, it is asked before each commit
  which rows are free. The hot path pays for none of this.
* A step of a run writes to its history alone and needs no row. What does write to the row of a run that stays is a
  summary for people, which is left out and made up for later.
* A run that ends, is given back or adopted needs its row. It waits, and tries again every fraction of a second.
  Whatever else it wants recorded comes after that.
* What meets another lock (of a message, a task, a key) waits in the same way, once halving the batch has shown whose
  record it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from continuum.worker.live import Entry, LiveRun

__all__ = ["CAREFUL_FOR", "HeldBack", "tell"]

logger = logging.getLogger("continuum.worker")

# For so many seconds after a lock was met it is asked for them first: another is likely, and would cost the patience.
CAREFUL_FOR = 3.0
# Seconds between two attempts at what waits for a lock: the first pause, and the longest.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.3


class HeldBack:
    """The entries that wait for somebody else's lock, one of each run, and behind each what its run has added since."""

    def __init__(self) -> None:
        self._runs: set[LiveRun] = set()
        self._due: dict[LiveRun, tuple[float, Entry]] = {}  # without those that are being tried right now
        self._behind: dict[LiveRun, Entry] = {}
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._runs)

    def hold(self, entry: Entry, behind: Entry | None) -> bool:
        """Hold an entry back, and behind it what its run has added; returns whether this is the first time."""
        live, now = entry.live, time.monotonic()
        since, pause = entry.wait or (now, FIRST_PAUSE)
        is_new = entry.wait is None
        entry.wait = (since, min(2 * pause, LONGEST_PAUSE))
        self._due[live] = now + pause, entry
        self._runs.add(live)
        live.held_back = True
        self._none.clear()
        if behind is not None:
            self.follow(behind)
        return is_new

    def follow(self, entry: Entry) -> None:
        """Put an entry behind that of its run."""
        self._behind[entry.live] = entry

    def due(self) -> list[Entry]:
        """Return the entries that are to be tried again now."""
        if not self._due:
            return []
        now = time.monotonic()
        return [entry for due, entry in self._due.values() if due <= now]

    def take(self, live: LiveRun) -> None:
        """The entry of a run is tried: what is not held back again has ended."""
        del self._due[live]

    async def wait(self, wake: asyncio.Event) -> None:
        """Wait until ``wake`` is set or an entry is due."""
        if not self._due:
            await wake.wait()
            return
        due = min(due for due, _ in self._due.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                await wake.wait()

    def end(self, live: LiveRun) -> Entry | None:
        """The run waits no more; returns what was behind."""
        live.held_back = False
        self._runs.discard(live)
        self._due.pop(live, None)
        if not self._runs:
            self._none.set()
        return self._behind.pop(live, None)

    def drop_behind(self, live: LiveRun) -> None:
        """Forget what a run has added."""
        self._behind.pop(live, None)

    def clear(self) -> list[LiveRun]:
        """Forget all; returns the runs that were held back."""
        runs = list(self._runs)
        for live in runs:
            if self.end(live) is not None:
                live.open_entry = None
        return runs

    async def none(self) -> None:
        """Wait until no run is held back."""
        await self._none.wait()


def tell(entries: list[Entry]) -> None:
    """Say which runs are held back."""
    more = f", and {len(entries) - 1} more runs" if len(entries) > 1 else ""
    logger.warning(
        "run %s%s: another transaction has locked what is to be written; others go on, and it is tried until that ends",
        entries[0].live.id,
        more,
    )
