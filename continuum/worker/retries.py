"""Whether and when an activity is tried again."""

from __future__ import annotations

import random
from typing import Any

from continuum.core.commands import Command
from continuum.core.loop import LAST_US
from continuum.core.retry import Retry

__all__ = ["next_attempt_us", "next_due_us"]


def next_attempt_us(
    command: Command, error: dict[str, Any], now_us: int, randomness: float | None = None
) -> int | None:
    """Return when the next attempt is due, or None when the attempt that has just failed was the last.

    Args:
        command: the activity's command; ``attempt`` is the one that failed.
        error: as the executor reports it, with ``retryable`` and ``retry_after`` (seconds or None).
        now_us: microseconds since the epoch.
        randomness: what jitter is made of, in [0, 1); drawn unless given.
    """
    return next_due_us(command.options.retry, command.attempt, command.issued_us, error, now_us, randomness)


def next_due_us(
    retry: Retry, attempt: int, issued_us: int, error: dict[str, Any], now_us: int, randomness: float | None = None
) -> int | None:
    """``next_attempt_us`` for whoever knows the call by its policy, the number of the attempt, and when it was made."""
    if not error.get("retryable", True) or attempt >= retry.max_attempts:
        return None
    delay = error.get("retry_after")
    if delay is None:
        delay = retry.delay(attempt, random.random() if randomness is None else randomness)
    next_us = min(now_us + round(delay * 1e6), LAST_US)
    if retry.horizon is not None and next_us > issued_us + retry.horizon * 1e6:
        return None
    return next_us
