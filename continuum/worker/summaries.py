"""Keeps the rows of quiet runs up to date.

A run's row is a summary while the run is live: writing it at every step would double the cost of a step. So it is
written when the run has been quiet for a moment, together with those of others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from continuum.core.loop import LAST_US
from continuum.worker import rows
from continuum.worker.journal import Journal
from continuum.worker.live import Entry, LiveRun

__all__ = ["Summaries"]

# A run that has been quiet for so long gets its row brought up to date, in seconds.
QUIET = 0.2
# What is due within so many microseconds is not waited for in quiet.
DUE_SOON_US = 1_000_000
# When somebody holds the row, the next attempt comes after so many seconds.
AGAIN = 1.0


class Summaries:
    """Writes the rows of runs that have gone quiet.

    Args:
        journal: returns the journal.
        after_each: called after each round.
    """

    def __init__(self, journal: Callable[[], Journal], after_each: Callable[[], None]) -> None:
        self._journal = journal
        self._after_each = after_each
        self._waiting: deque[LiveRun] = deque()
        self._left_out: set[LiveRun] = set()
        self._news = asyncio.Event()

    def touch(self, live: LiveRun) -> None:
        """The run has just done something."""
        live.touched = time.monotonic()
        if not live.waiting_for_summary:
            live.waiting_for_summary = True
            self._waiting.append(live)
            if len(self._waiting) == 1:
                self._news.set()

    def left_out(self, live: LiveRun) -> None:
        """What its row was to say has not been written, as somebody holds the row: that is made up for in a while."""
        if live not in self._left_out:
            self._left_out.add(live)
            asyncio.get_running_loop().call_later(AGAIN, self._make_up_for, live)

    def _make_up_for(self, live: LiveRun) -> None:
        self._left_out.discard(live)
        live.summary = None
        self.touch(live)

    def clear(self, live: LiveRun, entry: Entry) -> None:
        """What is journaled here clears a run that has lost workers: its row says so in the same commit."""
        if entry.update is None:
            entry.update = live.summary = rows.summary(live)._replace(recoveries=0)

    def clear_if_quiet(self, live: LiveRun, now_us: int) -> None:
        """Clear a run that has lost workers and waits now, at once: others may wait for the end of its trial.

        Unless it waits for what is due any moment: that it has lived through too is yet to be seen.
        """
        if live in self._left_out:
            return
        update = rows.summary(live)
        due = [update.next_wakeup_us, None if live.execution.cancel_reason is not None else live.deadline_us]
        if min((us for us in due if us is not None), default=LAST_US) > now_us + DUE_SOON_US:
            self._journal().entry(live).update = live.summary = update

    async def run(self) -> None:
        """Keep at it until cancelled."""
        while True:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
            await asyncio.sleep(max(0.02, self._waiting[0].touched + QUIET - time.monotonic()))
            self._round(time.monotonic() - QUIET)
            self._after_each()

    def _round(self, quiet_since: float) -> None:
        waiting = self._waiting
        for _ in range(len(waiting)):
            live = waiting.popleft()
            if live.gone or live.leaving:
                continue
            if live.touched > quiet_since:
                waiting.append(live)
                continue
            live.waiting_for_summary = False
            if live in self._left_out:
                continue
            update = rows.summary(live)
            if update != live.summary:
                live.summary = update
                self._journal().entry(live).update = update
