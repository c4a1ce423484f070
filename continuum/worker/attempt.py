"""One attempt of an activity, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from continuum import values
from continuum.core.activity_context import ActivityInfo
from continuum.core.definitions import ActivityDefinition, Retry
from continuum.exceptions import ActivityCancelledError, DurableValueError
from continuum.worker.live import Message

__all__ = ["Attempt", "AttemptResult"]

# How large the details of a heartbeat may be: they are written again and again.
HEARTBEAT_BYTES = 16 * 1024


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
        idempotency_key: what ``activity_info()`` shows; a transactional attempt records its result under it.
        heartbeat_timeout: seconds that may pass between two heartbeats, or None.
        run_token: the fencing token of its run, for an attempt the run's owner makes itself.
        task_token: the fencing token of its task, for one that was claimed from a queue.
        details_json: the details of its last heartbeat, encoded; None before the first.
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
    heartbeat_timeout: float | None = None
    run_token: int | None = None
    task_token: int | None = None
    details_json: str | None = field(default=None, init=False, repr=False)

    # Of the executor's own.
    running: bool = field(default=False, init=False, repr=False)
    stuck: bool = field(default=False, init=False, repr=False)
    settled: bool = field(default=False, init=False, repr=False)  # reported or abandoned: nobody waits for it any more
    timed_out: bool = field(default=False, init=False, repr=False)
    silent: bool = field(default=False, init=False, repr=False)  # timed out for want of a heartbeat
    submitted: bool = field(default=False, init=False, repr=False)
    started_us: int = field(default=0, init=False, repr=False)
    started: float = field(default=0.0, init=False, repr=False)  # monotonic; 0.0: not begun
    thread: int = field(default=0, init=False, repr=False)
    task: asyncio.Task[None] | None = field(default=None, init=False, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, init=False, repr=False)
    beaten: float = field(default=0.0, init=False, repr=False)  # monotonic; its last heartbeat
    noted: bool = field(default=False, init=False, repr=False)  # on its way to whoever records heartbeats
    note: Callable[[Attempt], None] | None = field(default=None, init=False, repr=False)

    @property
    def given_up(self) -> bool:
        """Nobody waits for it any more, or will: it was abandoned or reported, or its time is over."""
        return self.settled or self.timed_out

    def beat(self, details: Any) -> None:
        """Take a heartbeat, in whatever thread."""
        text = values.encode(details, path="details", max_bytes=HEARTBEAT_BYTES)
        if self.given_up:
            raise ActivityCancelledError(
                f"attempt {self.attempt} of {self.definition.name} is not wanted any more: its run was cancelled or "
                "goes on without it, its time is over, or its worker lost its lease"
            )
        self.details_json = text
        self.beaten = time.monotonic()
        if not self.noted and self.note is not None:
            self.noted = True
            self.note(self)

    @property
    def limit(self) -> float | None:
        """For how many seconds it may be left alone when it begins, or None."""
        timeout, heartbeat = self.timeout, self.heartbeat_timeout
        if timeout is None or heartbeat is None:
            return heartbeat if timeout is None else timeout
        return min(timeout, heartbeat)

    def time_left(self, now: float) -> tuple[float, bool]:
        """Return how many seconds it has left, and whether it is a heartbeat that it owes by then."""
        if not self.started:
            return max(self.limit or 0.0, 0.01), False
        left, silent = float("inf"), False
        if self.timeout is not None:
            left = self.started + self.timeout - now
        if self.heartbeat_timeout is not None:
            owed = max(self.started, self.beaten) + self.heartbeat_timeout - now
            if owed < left:
                left, silent = owed, True
        return left, silent

    def info(self) -> ActivityInfo:
        """Return what the activity may know of it."""
        return ActivityInfo(
            self.run_id, self.definition.name, self.attempt, self.heartbeat_details, self.idempotency_key
        )

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return what to call the function with.

        Raises:
            DurableValueError: the function does not take what was recorded.
        """
        text = self.args_json
        if text == "[]":
            return [], {}
        try:
            return self.definition.decode_arguments(text)
        except DurableValueError:
            raise
        except Exception as error:
            reason = f"{self.definition.name} cannot take what was recorded ({type(error).__name__}: {error})"
            raise DurableValueError("input", reason) from error


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
        message: its result lies in the run's inbox already, as this message; it is not to be reported again.
        owner: the worker the run belonged to then, to be told of the message, or None.
    """

    attempt: Attempt
    ok: bool
    value_json: str | None
    error: dict[str, Any] | None
    started_us: int
    ended_us: int
    message: Message | None = None
    owner: int | None = None
