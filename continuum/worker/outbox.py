"""What a run's step brings into being beyond its own history, written in the same transaction.

Children to start, requests to cancel them, tasks for other workers, the outcome for the parent, the run that goes on:
each is a statement of its own, run only when there is something for it, so that a plain step pays for none of them.
Every one of them can be written twice without harm, as the keys of what it inserts follow from the command.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import psycopg

from continuum.core.children import ChildStart, Successor
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.family import write_family
from continuum.worker.keys import KeyOutcome, write_outcomes
from continuum.worker.sql import load

if TYPE_CHECKING:
    from continuum.worker.live import Entry, LiveRun

__all__ = ["Cancellation", "Outbox", "Sent", "TaskStart", "write_outbox"]


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


async def write_outbox(connection: psycopg.AsyncConnection[Any], entries: Iterable[Entry]) -> Sent:
    """Write what these entries send, in the transaction that is open on ``connection``."""
    sent = Sent()
    outboxes = [(entry.live, entry.outbox) for entry in entries if entry.outbox is not None]
    await write_family(connection, outboxes, sent)
    if cleared := [live for live, outbox in outboxes if outbox.clear_tasks]:
        await connection.execute(
            load("outbox_clear_tasks"), {"run_ids": plain_array([live.hex for live in cleared])}, prepare=True
        )
    if tasks := [(live, task) for live, outbox in outboxes for task in outbox.tasks]:
        await _start_tasks(connection, tasks)
        sent.queues.update(task.queue for _, task in tasks)
    # After the tasks: one may be asked for and given up in the same step.
    if dropped := [(live.hex, command_id) for live, outbox in outboxes for command_id in outbox.dropped]:
        await _drop_tasks(connection, dropped)
    if keys := [outcome for _, outbox in outboxes for outcome in outbox.keys]:
        sent.keys = await write_outcomes(connection, keys)
    return sent


async def _start_tasks(connection: psycopg.AsyncConnection[Any], tasks: list[tuple[LiveRun, TaskStart]]) -> None:
    await connection.execute(
        load("outbox_tasks"),
        {
            "run_ids": plain_array([live.hex for live, _ in tasks]),
            "commands": text_array([task.command_id for _, task in tasks]),
            "activities": text_array([task.activity for _, task in tasks]),
            "queues": text_array([task.queue for _, task in tasks]),
            "priorities": plain_array([task.priority for _, task in tasks]),
            "args": text_array([task.args for _, task in tasks]),
            "options": text_array([task.options for _, task in tasks]),
            "attempts": plain_array([task.attempt for _, task in tasks]),
            "due": plain_array([task.due_us for _, task in tasks]),
        },
        prepare=True,
    )


async def _drop_tasks(connection: psycopg.AsyncConnection[Any], dropped: list[tuple[str, str]]) -> None:
    # In the order in which everybody locks them.
    dropped.sort()
    await connection.execute(
        load("outbox_drop_tasks"),
        {
            "run_ids": plain_array([run for run, _ in dropped]),
            "commands": text_array([command_id for _, command_id in dropped]),
        },
        prepare=True,
    )
