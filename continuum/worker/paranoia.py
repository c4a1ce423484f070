"""Paranoid mode in a worker: what makes its executions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from continuum.core.execution import Execution
from continuum.determinism import paranoid, twin

__all__ = ["maker"]

logger = logging.getLogger("continuum.worker")


async def maker() -> Callable[..., Execution]:
    """Return what makes executions: the class itself, or in paranoid mode one that compares them with their replays."""
    if not paranoid.enabled():
        return Execution
    logger.warning("paranoid mode: every step of every run is compared with a replay of it")
    other = await asyncio.to_thread(twin.shared)
    return partial(paranoid.execution_class(), elsewhere=other.ask)
