"""Keeps the rows of quiet runs up to date.

A run's row is a summary while the run is live: writing it at every step would double the cost of a step. So it is
written when the run has been quiet for a moment, together with those of others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from continuum.worker import rows
from continuum.worker.journal import Journal
from continuum.worker.live import LiveRun

__all__ = ["Summaries"]

# A run that has been quiet for so long gets its row brought up to date, in seconds.
QUIET = 0.2


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
        self._news = asyncio.Event()

    def touch(self, live: LiveRun) -> None:
        """The run has just done something."""
        live.touched = time.monotonic()
        if not live.waiting_for_summary:
            live.waiting_for_summary = True
            self._waiting.append(live)
            if len(self._waiting) == 1:
                self._news.set()

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
            update = rows.summary(live)
            if update != live.summary:
                live.summary = update
                self._journal().entry(live).update = update
