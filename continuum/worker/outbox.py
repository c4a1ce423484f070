"""What a run's step brings into being beyond its own history, written in the same transaction.

Children to start, requests to cancel them, tasks for other workers, the outcome for the parent, the run that goes on:
each is a statement of its own, run only when there is something for it, so that a plain step pays for none of them.
Every one of them can be written twice without harm, as the keys of what it inserts follow from the command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from continuum.core.children import ChildStart, Successor

__all__ = ["Cancellation", "KeyOutcome", "Outbox", "Sent", "TaskStart"]


class Cancellation(NamedTuple):
    """A request to cancel a child. ``delivery_id`` makes two of them one."""

    run_id: UUID
    reason: str
    delivery_id: str


class TaskStart(NamedTuple):
    """An activity for whichever worker serves its queue. ``args`` and ``options`` are JSON text."""

    command_id: str
    activity: str
    queue: str
    priority: int
    args: str
    options: str
    attempt: int
    due_us: int


class KeyOutcome(NamedTuple):
    """What becomes of a key that a command may hold: its result as JSON text, or None to give it back."""

    key_id: UUID
    run_id: UUID
    command_id: str
    value_json: str | None


@dataclass(slots=True)
class Outbox:
    """What one entry of the journal sends.

    Attributes:
        children: children to start.
        cancels: children to cancel.
        tasks: activities for other workers.
        dropped: commands whose rows in the task table nobody needs any more.
        keys: results of activities for their idempotency keys, and keys to give back.
        report: the run has ended: its parent, if it has one, is told.
        successor: the run that goes on.
        cascade: the run was asked to stop, for this reason: every child of its that has not ended is asked as well.
        clear_tasks: the run has ended without a word from its code: every task of its is taken back.
        adopted: the version and hash of the code that has the run from now on.
        tried: the version that the run, which is parked, has been tried with.
    """

    children: list[ChildStart] = field(default_factory=list)
    cancels: list[Cancellation] = field(default_factory=list)
    tasks: list[TaskStart] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    keys: list[KeyOutcome] = field(default_factory=list)
    report: bool = False
    successor: Successor | None = None
    cascade: str | None = None
    clear_tasks: bool = False
    adopted: tuple[int, str] | None = None
    tried: str | None = None


@dataclass(slots=True)
class Sent:
    """Whom to tell once it is durable.

    Attributes:
        news: runs with a new message, and the worker that owns each, or None.
        ready: there are new runs to claim.
        queues: queues with new tasks.
        continued: runs that have gone over into their successors.
        keys: idempotency keys that have a result now, or are free.
    """

    news: dict[UUID, int | None] = field(default_factory=dict)
    ready: bool = False
    queues: set[str] = field(default_factory=set)
    continued: list[UUID] = field(default_factory=list)
    keys: set[UUID] = field(default_factory=set)
