"""Writes what entries of the journal send, in the transaction that records them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from continuum.worker.arrays import plain_array, text_array
from continuum.worker.family import write_family
from continuum.worker.keys import write_outcomes
from continuum.worker.live import Entry, LiveRun
from continuum.worker.outbox import Outbox, Sent, TaskStart
from continuum.worker.sql import load

__all__ = ["write_outbox"]


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
    if changed := [(live, outbox) for live, outbox in outboxes if outbox.adopted or outbox.tried]:
        await _note_versions(connection, changed)
    if keys := [outcome for _, outbox in outboxes for outcome in outbox.keys]:
        sent.keys = await write_outcomes(connection, keys)
    return sent


async def _note_versions(connection: psycopg.AsyncConnection[Any], changed: list[tuple[LiveRun, Outbox]]) -> None:
    adopted = [(None, None) if outbox.tried or not outbox.adopted else outbox.adopted for _, outbox in changed]
    await connection.execute(
        load("outbox_versions"),
        {
            "run_ids": plain_array([live.hex for live, _ in changed]),
            "versions": plain_array([version for version, _ in adopted]),
            "hashes": text_array([version_hash for _, version_hash in adopted]),
            "tried": text_array([outbox.tried for _, outbox in changed]),
        },
        prepare=True,
    )


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
