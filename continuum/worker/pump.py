"""Gives live runs their turns: what is to happen to them, one thing after the other, in slices of the loop's time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from continuum.worker.live import LiveRun

__all__ = ["Pump"]

# How long work may keep the loop before others get a turn, in seconds.
SLICE = 0.005


class Pump:
    """Calls functions about live runs, in the order they were posted.

    Args:
        loop: the worker's loop.
        attend: calls a function about a run, and deals with what it raises.
        on_empty: called when there is nothing left to do.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        attend: Callable[[Callable[..., None], LiveRun, tuple[Any, ...]], None],
        on_empty: Callable[[], None],
    ) -> None:
        self.work: deque[tuple[Callable[..., None], LiveRun, tuple[Any, ...]]] = deque()
        self._loop = loop
        self._attend = attend
        self._on_empty = on_empty
        self._pumping = False

    def post(self, fn: Callable[..., None], live: LiveRun, *args: Any) -> None:
        """Have ``fn(live, *args)`` called, unless the run is gone by then."""
        self.work.append((fn, live, args))
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        work = self.work
        until = time.monotonic() + SLICE
        while work:
            fn, live, args = work.popleft()
            if not live.gone and not live.leaving:
                self._attend(fn, live, args)
            if time.monotonic() > until:
                break
        if work:
            self._loop.call_soon(self._pump)
        else:
            self._pumping = False
            self._on_empty()
