"""Runs attempts of activities: ``def`` ones in threads, ``async def`` ones as tasks on the worker's loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

from continuum import values
from continuum.conf import settings as continuum_settings
from continuum.core.activity_context import current_attempt
from continuum.core.failures import describe_exception
from continuum.worker import instances
from continuum.worker.attempt import Attempt, AttemptResult
from continuum.worker.attempt_errors import failure, stack_of, timeout_failure
from continuum.worker.hygiene import SharedConnections, ThreadConnections
from continuum.worker.threads import ThreadPool
from continuum.worker.transactional import Transactions

__all__ = ["ActivityExecutor", "Attempt", "AttemptResult"]

logger = logging.getLogger("continuum.worker")

# Async attempts at once, for each thread: they mostly wait, but each may hold a socket.
ASYNC_PER_THREAD = 8
# How long an async attempt may take to end after it was cancelled, before it is reported without it.
CANCEL_GRACE = 5.0


class ActivityExecutor:
    """Runs attempts and reports their results in batches.

    Args:
        loop: the worker's loop. Every method is to be called on it.
        threads: how many ``def`` attempts run at once; of ``async def`` ones, eight times as many.
        on_results: called on the loop with the attempts that have ended since the last time.
        clock: returns the current time in microseconds since the epoch; called from any thread.
        max_value_bytes: how large a result may be; the setting ``MAX_VALUE_BYTES`` unless given.
        transactions: makes the attempts of transactional activities; unless given, they are made like any other.
        on_beat: called, in any thread, with an attempt whose heartbeats are to be recorded.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int,
        on_results: Callable[[list[AttemptResult]], None],
        clock: Callable[[], int],
        max_value_bytes: int | None = None,
        transactions: Transactions | None = None,
        on_beat: Callable[[Attempt], None] | None = None,
    ) -> None:
        self.threads = threads
        self.busy = 0  # queued or running, and somebody waits for it
        self._loop = loop
        self._on_results = on_results
        self._clock = clock
        self._max_bytes = max_value_bytes or continuum_settings.MAX_VALUE_BYTES
        self._transactions = transactions
        self._on_beat = on_beat
        self._thread_connections = ThreadConnections()
        self._shared_connections = SharedConnections()
        self._pool: ThreadPool[Attempt] = ThreadPool(
            threads, self._run_in_thread, on_exit=self._thread_connections.close, name="continuum-activity"
        )
        self._ended: deque[AttemptResult] = deque()
        self._flush_coming = False
        self._async_limit = threads * ASYNC_PER_THREAD
        self._async_waiting: deque[Attempt] = deque()
        self._in_threads = 0  # of those that are busy
        self._tasks: set[asyncio.Task[None]] = set()
        self._fences: set[asyncio.Task[None]] = set()
        self._closing = self._cut_short = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def stuck(self) -> int:
        """How many threads are lost to attempts nobody waits for any more."""
        return self._pool.stuck

    def free(self, is_async: bool) -> int:
        """Return how many attempts, of ``async def`` activities or of others, would begin at once now."""
        if self._closing:
            return 0
        if is_async:
            return max(0, self._async_limit - len(self._tasks) - len(self._async_waiting))
        return max(0, self.threads - self._in_threads - max(0, self._pool.stuck - self.threads))

    def newest(self) -> list[Attempt]:
        """Return the attempts that wait last in line: for a thread, and for a place on the loop."""
        last = (self._pool.newest(), self._async_waiting[-1] if self._async_waiting else None)
        return [attempt for attempt in last if attempt is not None]

    def withdraw(self, until: Attempt, most: int, wanted: Callable[[Attempt], bool]) -> list[Attempt]:
        """Take back attempts so that they never begin here: the last ``most`` that are ``wanted``, up to ``until``."""
        if not until.definition.is_async:
            taken = self._pool.withdraw(until, most, lambda attempt: not attempt.settled and wanted(attempt))
        else:
            line = list(self._async_waiting)
            line = line[: line.index(until) + 1] if until in line else []
            taken = [attempt for attempt in line if not attempt.settled and wanted(attempt)][-most:]
        for attempt in taken:
            self._settle(attempt)  # an async one that is settled is passed over when its turn comes
        return taken

    def submit(self, attempt: Attempt) -> None:
        """Run an attempt as soon as there is room. Never blocks; nothing is run any more once ``close`` was called."""
        if self._closing:
            return
        if not self.busy:
            self._quiet.clear()
        self.busy += 1
        attempt.submitted = True
        attempt.note = self._on_beat
        if (limit := attempt.limit) is not None:
            attempt.timer = self._loop.call_later(limit, self._check_timeout, attempt)
        if not attempt.definition.is_async:
            self._in_threads += 1
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

    def begin_nothing_more(self) -> list[Attempt]:
        """From now on begin no attempt, and return those that were still in line: they are not reported."""
        self._closing = True
        dropped = [attempt for attempt in (*self._pool.close(), *self._async_waiting) if not attempt.settled]
        self._async_waiting.clear()
        for attempt in dropped:
            self._settle(attempt)
        return dropped

    async def close(self, timeout: float) -> int:
        """Begin nothing more, let what runs end for up to ``timeout`` seconds, and return how many attempts did not.

        What ends in time is reported as usual. What was still in line is dropped.
        """
        self.begin_nothing_more()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        left = self.busy
        self._cut_short = True
        left_over = self._tasks | self._fences
        for task in left_over:
            task.cancel()
        if left_over:
            await asyncio.wait(left_over, timeout=1.0)
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
        try:
            if self._transactions is not None and attempt.definition.default_options.transactional:
                result = self._transactions.run(attempt, self._call)
            else:
                # A context of its own: what one attempt sets (a language, a time zone) must not reach the next.
                value_json = Context().run(self._call, attempt)
                result = AttemptResult(attempt, True, value_json, None, attempt.started_us, self._clock())
        except BaseException as exc:
            result = AttemptResult(attempt, False, None, failure(attempt, exc), attempt.started_us, self._clock())
        self._ended.append(result)
        # The results of a burst reach the loop together: only the first one has to wake it.
        if not self._flush_coming:
            self._flush_coming = True
            # RuntimeError: the loop is closed, nobody waits any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._flush)
        connections.after(failed=not result.ok)

    def _call(self, attempt: Attempt) -> str:
        current_attempt.set(attempt)
        args, kwargs = instances.load(attempt, *attempt.arguments())
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
            current_attempt.set(attempt)
            args, kwargs = await instances.aload(attempt, *attempt.arguments())
            value_json = self._encode(attempt, await attempt.definition.fn(*args, **kwargs))
        except BaseException as exc:
            if attempt.settled or self._cut_short:
                return  # in the latter case it runs again elsewhere: a drain is not the activity's failure
            self._shared_connections.failed(exc)
            if isinstance(exc, asyncio.CancelledError) and attempt.timed_out:
                error = timeout_failure(attempt, describe_exception(exc)["traceback"])
            else:
                error = failure(attempt, exc)
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
        """A timed attempt was submitted, or looked at, a while ago: has its time come?"""
        if attempt.settled:
            return
        now = time.monotonic()
        left, silent = attempt.time_left(now)
        if attempt.timed_out:  # and cancelled, but it does not end
            self._report_timeout(attempt, "")
        elif left > 0:
            attempt.timer = self._loop.call_later(left, self._check_timeout, attempt)
        elif attempt.task is not None:
            attempt.timed_out, attempt.silent = True, silent
            attempt.task.cancel()
            attempt.timer = self._loop.call_later(CANCEL_GRACE, self._check_timeout, attempt)
        else:
            where = stack_of(attempt.thread)
            # False: it has just ended, and its result is on the way.
            if self._pool.give_up(attempt):
                attempt.timed_out, attempt.silent = True, silent
                if self._transactions is not None and attempt.definition.default_options.transactional:
                    fence = self._loop.create_task(self._fence(attempt, where))
                    self._fences.add(fence)
                    fence.add_done_callback(self._fences.discard)
                else:
                    self._report_timeout(attempt, where)

    async def _fence(self, attempt: Attempt, where: str) -> None:
        """Report a timeout once it is certain that the attempt cannot take effect any more; or that it has."""
        assert self._transactions is not None
        value_json = await self._transactions.fence(attempt)
        if value_json is None:
            self._report_timeout(attempt, where)
        else:
            self._ended.append(AttemptResult(attempt, True, value_json, None, attempt.started_us, self._clock()))
            self._flush()

    def _report_timeout(self, attempt: Attempt, where: str) -> None:
        error = timeout_failure(attempt, where)
        self._ended.append(AttemptResult(attempt, False, None, error, attempt.started_us, self._clock()))
        self._flush()

    def _settle(self, attempt: Attempt) -> None:
        attempt.settled = True
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        if attempt.submitted:
            self.busy -= 1
            if not attempt.definition.is_async:
                self._in_threads -= 1
            if not self.busy:
                self._quiet.set()

    def _flush(self) -> None:
        # Before taking the results: one that is added from now on finds the flag down and wakes the loop again.
        self._flush_coming = False
        ended = self._ended
        batch = []
        while ended:
            result = ended.popleft()
            attempt = result.attempt
            if not attempt.settled:
                self._settle(attempt)
                # Its context knows the attempt: without the cycle nothing is left to the garbage collector.
                attempt.task = None
                batch.append(result)
        if batch:
            self._on_results(batch)
