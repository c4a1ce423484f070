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
from continuum.worker.sql import load

if TYPE_CHECKING:
    from continuum.worker.live import Entry

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
        report: the run has ended: its parent, if it has one, is told.
        successor: the run that goes on.
    """

    children: list[ChildStart] = field(default_factory=list)
    cancels: list[Cancellation] = field(default_factory=list)
    tasks: list[TaskStart] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    report: bool = False
    successor: Successor | None = None


@dataclass(slots=True)
class Sent:
    """Whom to tell once it is durable.

    Attributes:
        news: runs with a new message, and the worker that owns each, or None.
        ready: there are new runs to claim.
        queues: queues with new tasks.
    """

    news: dict[UUID, int | None] = field(default_factory=dict)
    ready: bool = False
    queues: set[str] = field(default_factory=set)


async def write_outbox(connection: psycopg.AsyncConnection[Any], entries: Iterable[Entry]) -> Sent:
    """Write what these entries send, in the transaction that is open on ``connection``."""
    sent = Sent()
    outboxes = [(entry, entry.outbox) for entry in entries if entry.outbox is not None]
    children = [(entry, child) for entry, outbox in outboxes for child in outbox.children]
    if children:
        await _start_children(connection, children)
        sent.ready = True
    tasks = [(entry, task) for entry, outbox in outboxes for task in outbox.tasks]
    if tasks:
        await _start_tasks(connection, tasks)
        sent.queues.update(task.queue for _, task in tasks)
    # After the tasks: one may be asked for and given up in the same step.
    dropped = [(entry.live.hex, command_id) for entry, outbox in outboxes for command_id in outbox.dropped]
    if dropped:
        await _drop_tasks(connection, dropped)
    return sent


async def _start_children(connection: psycopg.AsyncConnection[Any], children: list[tuple[Entry, ChildStart]]) -> None:
    await connection.execute(
        load("outbox_children"),
        {
            "parents": plain_array([entry.live.hex for entry, _ in children]),
            "ids": plain_array([child.id.hex for _, child in children]),
            "commands": text_array([child.reply_to for _, child in children]),
            "workflows": text_array([child.definition.name for _, child in children]),
            "versions": plain_array([child.definition.version for _, child in children]),
            "hashes": text_array([child.definition.version_hash for _, child in children]),
            "inputs": text_array([child.input for _, child in children]),
            "namespaces": text_array([child.namespace for _, child in children]),
            "attributes": text_array([child.attributes for _, child in children]),
        },
        prepare=True,
    )


async def _start_tasks(connection: psycopg.AsyncConnection[Any], tasks: list[tuple[Entry, TaskStart]]) -> None:
    await connection.execute(
        load("outbox_tasks"),
        {
            "run_ids": plain_array([entry.live.hex for entry, _ in tasks]),
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
