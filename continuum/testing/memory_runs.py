"""A run in memory, as a test sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from continuum import values
from continuum.core.definitions import WorkflowDefinition
from continuum.core.execution import Outcome
from continuum.core.history import Event as Record
from continuum.core.identity import RunIdentity
from continuum.models import Event
from continuum.testing.traces import Recorder, State
from continuum.waiting import WaitTimeoutError

__all__ = ["TERMINAL_STATES", "Letter", "MemoryRun", "StillWaitingError", "instant"]

TERMINAL_STATES = frozenset({"completed", "failed", "cancelled"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(time_us: int) -> datetime:
    """Return an aware datetime for microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=time_us)


class StillWaitingError(WaitTimeoutError):
    """The run did not end in time; says what it waits for besides."""

    def __init__(self, run_id: UUID, state: str, timeout: float, waits: str) -> None:
        super().__init__(run_id, state, timeout)
        self.waits = waits

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.waits}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A message on its way to a run: a ``signal``, a ``cancel`` request, or how a ``child`` has ended.

    ``payload`` is JSON text; of a request to cancel, the reason itself.
    """

    kind: str
    name: str | None
    payload: str


@dataclass(eq=False, kw_only=True)
class MemoryRun:
    """A run of ``continuum_env``. Its attributes are those of ``continuum.Run``, and always say how it stands now."""

    definition: WorkflowDefinition = field(repr=False)
    identity: RunIdentity = field(repr=False)
    input_json: str
    attributes: dict[str, Any]
    correlation_id: UUID
    priority: int = 0
    idempotency_key: str | None = None
    begin_us: int = 0
    deadline_us: int | None = None
    claimed_us: int | None = None
    completed_us: int | None = None
    parent_run_id: UUID | None = None
    reply_to: str | None = None
    continued_from_run_id: UUID | None = None
    continued_to_run_id: UUID | None = None
    forked_from_run_id: UUID | None = None
    outcome: Outcome | None = None
    records: list[Record] = field(default_factory=list, repr=False)
    execution: Recorder | None = field(default=None, repr=False)
    # The environment's own.
    mail: list[Letter] = field(default_factory=list, repr=False)
    deliveries: set[str] = field(default_factory=set, repr=False)
    beats: dict[str, str] = field(default_factory=dict, repr=False)
    timer_us: int | None = field(default=None, repr=False)
    standing_in: bool = field(default=False, repr=False)
    final_progress: str | None = field(default=None, repr=False)
    retries: int = field(default=0, repr=False)
    # In the order of the world: at one instant of virtual time much may happen, one after the other.
    ended_as: int = field(default=0, repr=False)
    retried_as: int = field(default=0, repr=False)
    under_way: set[str] = field(default_factory=set, repr=False)
    states: dict[int, State] | None = field(default=None, repr=False)

    @property
    def id(self) -> UUID:
        """The run's id."""
        return self.identity.id

    @property
    def workflow(self) -> str:
        """The name of its workflow."""
        return self.definition.name

    @property
    def version(self) -> int:
        """The version of its workflow."""
        return self.identity.version

    @property
    def version_hash(self) -> str:
        """The hash of its workflow's code."""
        return self.definition.version_hash

    @property
    def namespace(self) -> str:
        """The namespace it is in."""
        return self.identity.namespace

    @property
    def state(self) -> str:
        """``pending``, ``running``, ``suspended``, ``completed``, ``failed`` or ``cancelled``."""
        if self.outcome is not None:
            return self.outcome.state
        if self.claimed_us is None and not self.standing_in:
            return "pending"
        return "running" if self.under_way or self.standing_in else "suspended"

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.outcome is not None

    @property
    def input(self) -> Any:
        """Its arguments."""
        return values.decode(self.input_json)

    @property
    def result(self) -> Any:
        """What it returned, as its row has it: what an annotation makes of it is what ``result()`` returns."""
        if self.outcome is None or self.outcome.result is None:
            return None
        return values.decode(self.outcome.result)

    @property
    def error(self) -> dict[str, Any] | None:
        """``{"type", "message", "traceback", "details"}`` of a run that failed or was cancelled."""
        return None if self.outcome is None else self.outcome.error

    @property
    def progress(self) -> Any:
        """What it published with ``set_progress()`` last."""
        text = self.final_progress if self.execution is None else self.execution.progress
        return None if text is None else values.decode(text)

    @property
    def waiting_on(self) -> list[dict[str, Any]]:
        """What it waits for, each with its ``kind``; empty once it has ended."""
        if self.outcome is not None or self.execution is None:
            return []
        return self.execution.waiting_on()

    @property
    def started_at(self) -> datetime:
        """When it was started, in virtual time."""
        return instant(self.identity.started_us)

    @property
    def completed_at(self) -> datetime | None:
        """When it ended, in virtual time."""
        return None if self.completed_us is None else instant(self.completed_us)

    @property
    def next_wakeup_at(self) -> datetime | None:
        """When it goes on by itself: its first timer, the next try of an activity, or the time it is to begin at."""
        if self.state == "pending":
            return instant(self.begin_us)
        if self.outcome is not None or self.execution is None:
            return None
        waiting = [command for command in self.execution.pending.values() if command.id not in self.under_way]
        due = [command.not_before_us for command in waiting if command.not_before_us is not None]
        if (timer := self.execution.next_timer()) is not None and timer.due_us is not None:
            due.append(timer.due_us)
        return instant(min(due)) if due else None

    @property
    def retention_until(self) -> datetime | None:
        """Until when it would be kept; None before it has ended, and if it is kept for ever."""
        if self.completed_at is None or self.definition.retention is None:
            return None
        try:
            return self.completed_at + self.definition.retention
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)

    def history(self) -> Iterator[Event]:
        """Yield its events, oldest first."""
        for record in self.records:
            yield Event(
                seq=record.seq,
                type=record.type,
                command_id=record.command_id,
                name=record.name,
                data=values.decode(record.data),
                recorded_at=instant(record.time_us),
            )

    def letter_about_its_end(self) -> Letter:
        """What its parent is told."""
        assert self.outcome is not None
        error = "null" if self.outcome.error is None else json.dumps(self.outcome.error)
        told = (
            f'{{"child":"{self.id}","state":"{self.outcome.state}","result":{self.outcome.result or "null"},'
            f'"error":{error}}}'
        )
        return Letter("child", self.reply_to, told)

    def __str__(self) -> str:
        return f"{self.workflow} {self.id}"
