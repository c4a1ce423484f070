"""Runs attempts of activities: ``def`` ones in threads, ``async def`` ones as tasks on the worker's loop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from continuum import values
from continuum.conf import settings as continuum_settings
from continuum.core.activity_context import ActivityInfo, current_activity
from continuum.core.definitions import ActivityDefinition, Retry
from continuum.core.failures import describe_exception
from continuum.exceptions import ActivityTimeoutError, DurableValueError, NonRetryableError, RetryAfterError
from continuum.worker.hygiene import SharedConnections, ThreadConnections
from continuum.worker.threads import ThreadPool

__all__ = ["ActivityExecutor", "Attempt", "AttemptResult"]

logger = logging.getLogger("continuum.worker")

# Async attempts at once, for each thread: they mostly wait, but each may hold a socket.
ASYNC_PER_THREAD = 8
# How long an async attempt may take to end after it was cancelled, before it is reported without it.
CANCEL_GRACE = 5.0
_MAX_TRACEBACK = 16 * 1024
_HERE = os.path.abspath(__file__)


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt of an activity that is to be made.

    Attributes:
        run_id: the run that asks for it.
        command_id: the command's path within the run.
        definition: the activity.
        args_json: its arguments, as ``definition.encode_arguments`` made them.
        attempt: 1 for the first one.
        timeout: seconds from its start, or None.
        key: given back untouched.
        retry: the policy of this call; the activity's own unless given.
        heartbeat_details: what ``activity_info()`` shows of the attempt before.
        idempotency_key: what ``activity_info()`` shows.
    """

    run_id: UUID
    command_id: str
    definition: ActivityDefinition
    args_json: str
    attempt: int
    timeout: float | None = None
    key: object = None
    retry: Retry | None = None
    heartbeat_details: Any = None
    idempotency_key: str | None = None

    # Of the executor's own.
    running: bool = field(default=False, init=False, repr=False)
    stuck: bool = field(default=False, init=False, repr=False)
    settled: bool = field(default=False, init=False, repr=False)  # reported or abandoned: nobody waits for it any more
    timed_out: bool = field(default=False, init=False, repr=False)
    started_us: int = field(default=0, init=False, repr=False)
    started: float = field(default=0.0, init=False, repr=False)  # monotonic; 0.0: not begun
    thread: int = field(default=0, init=False, repr=False)
    task: asyncio.Task[None] | None = field(default=None, init=False, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, init=False, repr=False)


@dataclass(slots=True)
class AttemptResult:
    """How an attempt ended.

    Attributes:
        attempt: the attempt.
        ok: whether it returned.
        value_json: what it returned, encoded; None when not ok.
        error: ``{"type", "message", "traceback", "details", "retryable", "retry_after"}``; None when ok.
            ``retry_after`` is seconds or None.
        started_us: when it began, in microseconds since the epoch.
        ended_us: when it ended.
    """

    attempt: Attempt
    ok: bool
    value_json: str | None
    error: dict[str, Any] | None
    started_us: int
    ended_us: int


class ActivityExecutor:
    """Runs attempts and reports their results in batches.

    Args:
        loop: the worker's loop. Every method is to be called on it.
        threads: how many ``def`` attempts run at once; of ``async def`` ones, eight times as many.
        on_results: called on the loop with the attempts that have ended since the last time.
        clock: returns the current time in microseconds since the epoch; called from any thread.
        max_value_bytes: how large a result may be; the setting ``MAX_VALUE_BYTES`` unless given.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int,
        on_results: Callable[[list[AttemptResult]], None],
        clock: Callable[[], int],
        max_value_bytes: int | None = None,
    ) -> None:
        self.threads = threads
        self.busy = 0  # queued or running, and somebody waits for it
        self._loop = loop
        self._on_results = on_results
        self._clock = clock
        self._max_bytes = max_value_bytes or continuum_settings.MAX_VALUE_BYTES
        self._thread_connections = ThreadConnections()
        self._shared_connections = SharedConnections()
        self._pool: ThreadPool[Attempt] = ThreadPool(
            threads, self._run_in_thread, on_exit=self._thread_connections.close, name="continuum-activity"
        )
        self._ended: deque[AttemptResult] = deque()
        self._flush_coming = False
        self._async_limit = threads * ASYNC_PER_THREAD
        self._async_waiting: deque[Attempt] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = self._cut_short = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def stuck(self) -> int:
        """How many threads are lost to attempts nobody waits for any more."""
        return self._pool.stuck

    def submit(self, attempt: Attempt) -> None:
        """Run an attempt as soon as there is room. Never blocks; nothing is run any more once ``close`` was called."""
        if self._closing:
            return
        self.busy += 1
        self._quiet.clear()
        if attempt.timeout is not None:
            attempt.timer = self._loop.call_later(attempt.timeout, self._check_timeout, attempt)
        if not attempt.definition.is_async:
            self._pool.submit(attempt)
        elif len(self._tasks) < self._async_limit:
            self._start_task(attempt)
        else:
            self._async_waiting.append(attempt)

    def abandon(self, attempt: Attempt) -> None:
        """Forget an attempt: it is not begun any more, or cancelled, or its end ignored. It is not reported."""
        if attempt.settled:
            return
        self._settle(attempt)
        if attempt.task is not None:
            attempt.task.cancel()
        else:
            self._pool.give_up(attempt)

    async def close(self, timeout: float) -> int:
        """Begin nothing more, let what runs end for up to ``timeout`` seconds, and return how many attempts did not.

        What ends in time is reported as usual. What was still queued is dropped.
        """
        self._closing = True
        for attempt in (*self._pool.close(), *self._async_waiting):
            self._settle(attempt)
        self._async_waiting.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        left = self.busy
        self._cut_short = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        self._flush()
        await self._shared_connections.tidy(timeout=1.0)
        return left

    # In a thread

    def _run_in_thread(self, attempt: Attempt) -> None:
        if attempt.settled:
            return
        connections = self._thread_connections
        connections.before()
        attempt.thread = threading.get_ident()
        attempt.started_us = self._clock()
        attempt.started = time.monotonic()
        value_json, error = None, None
        try:
            # A context of its own: what one attempt sets (a language, a time zone) must not reach the next.
            value_json = Context().run(self._call, attempt)
        except BaseException as exc:
            error = _failure(attempt, exc)
        self._ended.append(AttemptResult(attempt, error is None, value_json, error, attempt.started_us, self._clock()))
        # The results of a burst reach the loop together: only the first one has to wake it.
        if not self._flush_coming:
            self._flush_coming = True
            # RuntimeError: the loop is closed, nobody waits any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._flush)
        connections.after()

    def _call(self, attempt: Attempt) -> str:
        current_activity.set(_info(attempt))
        args, kwargs = _arguments(attempt)
        return self._encode(attempt, attempt.definition.fn(*args, **kwargs))

    def _encode(self, attempt: Attempt, value: Any) -> str:
        return values.encode(value, attempt.definition.returns, path="result", max_bytes=self._max_bytes)

    # On the loop

    def _start_task(self, attempt: Attempt) -> None:
        attempt.running = True
        task = self._loop.create_task(self._run_on_loop(attempt), context=Context())
        attempt.task = task
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    async def _run_on_loop(self, attempt: Attempt) -> None:
        attempt.started_us = self._clock()
        attempt.started = time.monotonic()
        value_json, error = None, None
        try:
            current_activity.set(_info(attempt))
            args, kwargs = _arguments(attempt)
            value_json = self._encode(attempt, await attempt.definition.fn(*args, **kwargs))
        except BaseException as exc:
            if attempt.settled or self._cut_short:
                return  # in the latter case it runs again elsewhere: a drain is not the activity's failure
            if isinstance(exc, asyncio.CancelledError) and attempt.timed_out:
                error = _timeout_failure(attempt, describe_exception(exc)["traceback"])
            else:
                error = _failure(attempt, exc)
        if attempt.settled:
            return
        if self._shared_connections.used:
            await self._shared_connections.after(failed=error is not None)
        self._ended.append(AttemptResult(attempt, error is None, value_json, error, attempt.started_us, self._clock()))
        if not self._flush_coming:
            self._flush_coming = True
            self._loop.call_soon(self._flush)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("an attempt could not be reported", exc_info=error)
        while self._async_waiting and len(self._tasks) < self._async_limit:
            attempt = self._async_waiting.popleft()
            if not attempt.settled:
                self._start_task(attempt)

    def _check_timeout(self, attempt: Attempt) -> None:
        """A timed attempt was submitted at least its timeout ago: has it also been running for that long?"""
        assert attempt.timeout is not None
        if attempt.settled:
            return
        if not attempt.started:
            left = max(attempt.timeout, 0.01)
        else:
            left = attempt.started + attempt.timeout - time.monotonic()
        if left > 0:
            attempt.timer = self._loop.call_later(left, self._check_timeout, attempt)
        elif attempt.task is None:
            where = _stack_of(attempt.thread)
            # False: it has just ended, and its result is on the way.
            if self._pool.give_up(attempt):
                self._report_timeout(attempt, where)
        elif not attempt.timed_out:
            attempt.timed_out = True
            attempt.task.cancel()
            attempt.timer = self._loop.call_later(CANCEL_GRACE, self._check_timeout, attempt)
        else:
            self._report_timeout(attempt, "")

    def _report_timeout(self, attempt: Attempt, where: str) -> None:
        error = _timeout_failure(attempt, where)
        self._ended.append(AttemptResult(attempt, False, None, error, attempt.started_us, self._clock()))
        self._flush()

    def _settle(self, attempt: Attempt) -> None:
        attempt.settled = True
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        self.busy -= 1
        if not self.busy:
            self._quiet.set()

    def _flush(self) -> None:
        # Before taking the results: one that is added from now on finds the flag down and wakes the loop again.
        self._flush_coming = False
        ended = self._ended
        batch = []
        while ended:
            result = ended.popleft()
            if not result.attempt.settled:
                self._settle(result.attempt)
                batch.append(result)
        if batch:
            self._on_results(batch)


def _info(attempt: Attempt) -> ActivityInfo:
    return ActivityInfo(
        attempt.run_id,
        attempt.definition.name,
        attempt.attempt,
        attempt.heartbeat_details,
        attempt.idempotency_key,
    )


def _arguments(attempt: Attempt) -> tuple[list[Any], dict[str, Any]]:
    text = attempt.args_json
    if text == "[]":
        return [], {}
    try:
        return attempt.definition.decode_arguments(text)
    except DurableValueError:
        raise
    except Exception as error:
        reason = f"{attempt.definition.name} cannot take what was recorded ({type(error).__name__}: {error})"
        raise DurableValueError("input", reason) from error


def _failure(attempt: Attempt, exc: BaseException) -> dict[str, Any]:
    retry = attempt.retry or attempt.definition.default_options.retry
    error = describe_exception(exc)
    error["retryable"] = not isinstance(exc, NonRetryableError | DurableValueError) and retry.allows(exc)
    error["retry_after"] = exc.delay if isinstance(exc, RetryAfterError) else None
    return error


def _timeout_failure(attempt: Attempt, where: str) -> dict[str, Any]:
    assert attempt.timeout is not None
    error = _failure(attempt, ActivityTimeoutError(attempt.definition.name, attempt.timeout))
    if where:
        error["traceback"] = where
    return error


def _stack_of(thread: int) -> str:
    """Return what a thread is doing, from the activity's own frame on."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    frames = traceback.extract_stack(frame)
    own = max((index for index, entry in enumerate(frames) if entry.filename == _HERE), default=-1)
    text = "".join(traceback.format_list(frames[own + 1 :]))
    return f"The attempt timed out here (most recent call last):\n{text[-_MAX_TRACEBACK:]}" if text else ""
