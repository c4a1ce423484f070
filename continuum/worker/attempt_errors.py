"""How an attempt failed, as data for the journal."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from continuum.core.failures import describe_exception
from continuum.exceptions import ActivityTimeoutError, DurableValueError, NonRetryableError, RetryAfterError

if TYPE_CHECKING:
    from continuum.worker.attempt import Attempt

__all__ = ["failure", "stack_of", "timeout_failure"]

_MAX_TRACEBACK = 16 * 1024
# The frame below which everything is the activity's own.
_CALLER = (os.path.join(os.path.dirname(os.path.abspath(__file__)), "activities.py"), "_call")


def failure(attempt: Attempt, exc: BaseException) -> dict[str, Any]:
    """Return what an attempt's result says about an exception."""
    retry = attempt.retry or attempt.definition.default_options.retry
    error = describe_exception(exc)
    error["retryable"] = not isinstance(exc, NonRetryableError | DurableValueError) and retry.allows(exc)
    error["retry_after"] = exc.delay if isinstance(exc, RetryAfterError) else None
    return error


def timeout_failure(attempt: Attempt, where: str) -> dict[str, Any]:
    """Return what the result of an attempt that took too long says; ``where`` is what it was doing, or empty."""
    limit = attempt.heartbeat_timeout if attempt.silent else attempt.timeout
    assert limit is not None
    error = failure(attempt, ActivityTimeoutError(attempt.definition.name, limit, attempt.silent))
    if where:
        error["traceback"] = where
    return error


def stack_of(thread: int) -> str:
    """Return what a thread is doing, from the activity's own frame on."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    frames = traceback.extract_stack(frame)
    own = max((index for index, entry in enumerate(frames) if (entry.filename, entry.name) == _CALLER), default=-1)
    text = "".join(traceback.format_list(frames[own + 1 :]))
    return f"The attempt timed out here (most recent call last):\n{text[-_MAX_TRACEBACK:]}" if text else ""
