"""Writing what concerns a run's parent, its children and its successor, in the transaction of its journal entry.

Two workers may do so at the same time to the same family: a child reports while its parent continues, a parent cancels
while its child ends. The order of locks that keeps them from waiting for each other in a circle:

1. The journal's statement comes first. It locks rows of runs that this worker owns, and may wait for them.
2. From then on the transaction waits for no run. What is read of the runs of others is read without a lock, and where
   one of their rows has to be changed, a row that somebody holds is skipped and left to those who forward mail.

So whoever waits for a run holds none of the runs of others. Messages are inserted, never updated: what reaches a run
just continued is forwarded (``continuum.worker.forwarding``), and what reaches one that has just ended is void.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from continuum.core.children import ChildStart, Successor
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.sql import load

if TYPE_CHECKING:
    from continuum.worker.live import LiveRun
    from continuum.worker.outbox import Cancellation, Outbox, Sent

    Connection = psycopg.AsyncConnection[Any]

__all__ = ["write_family"]

# Bytes of input in one statement: a fan-out of large arguments must not become a statement the server refuses.
MOST_BYTES = 16 * 1024 * 1024


async def write_family(connection: Connection, outboxes: list[tuple[LiveRun, Outbox]], sent: Sent) -> None:
    """Write these sections of some outboxes, and note in ``sent`` whom to tell.

    Successors come before all that looks for the tip of a chain or the children of a run: a request to cancel must find
    the successor of a child that was continued in the same commit.
    """
    if children := [(live, child) for live, outbox in outboxes for child in outbox.children]:
        for chunk in _chunks(children):
            started = await _start_children(connection, chunk)
            if len(started) < len(chunk):
                await _find_children(connection, [each for each in chunk if each[1].id not in started], sent)
        sent.ready = True
    successors = [(live, outbox.successor) for live, outbox in outboxes if outbox.successor is not None]
    if successors:
        await _begin_successors(connection, successors)
        sent.ready = True
        sent.continued += [live.id for live, _ in successors]
    if cancels := [cancel for _, outbox in outboxes for cancel in outbox.cancels]:
        await _cancel(connection, cancels, sent)
    if cascades := [(live, outbox.cascade) for live, outbox in outboxes if outbox.cascade is not None]:
        await _cascade(connection, cascades, sent)
    if successors:
        await _adopt_children(connection, successors)
    if ended := [live for live, outbox in outboxes if outbox.report]:
        await _tell(connection, "outbox_report", sent, run_ids=plain_array([live.hex for live in ended]))


async def _start_children(connection: Connection, children: list[tuple[LiveRun, ChildStart]]) -> set[UUID]:
    """Start children; returns the ids of those that were not there before."""
    cursor = await connection.execute(
        load("outbox_children"),
        {
            "parents": plain_array([live.hex for live, _ in children]),
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
    return {row[0] for row in await cursor.fetchall()}


async def _find_children(connection: Connection, children: list[tuple[LiveRun, ChildStart]], sent: Sent) -> None:
    """See to children that were started before, and whose parents' histories know of no end.

    One that failed before its parent was retried is retried as well. Of any other that has ended, the word is on its
    way; unless it came at a time when nobody waited for it: then it is sent again.
    """
    cursor = await connection.execute(
        load("outbox_children_ended"),
        {
            "parents": plain_array([live.hex for live, _ in children]),
            "ids": plain_array([child.id.hex for _, child in children]),
            "commands": text_array([child.reply_to for _, child in children]),
            "retried": plain_array([child.retried_us for _, child in children]),
        },
    )
    ended = await cursor.fetchall()
    failed = [tip.hex for tip, to_be_retried in ended if to_be_retried]
    if failed:
        # Of two that want the same one is enough: what somebody holds is left to him.
        cursor = await connection.execute(load("outbox_children_lock"), {"run_ids": plain_array(failed)})
        for (run_id,) in await cursor.fetchall():
            await connection.execute(load("client_retry"), {"run_id": run_id})
    silent = [tip.hex for tip, to_be_retried in ended if not to_be_retried]
    if silent:
        await _tell(connection, "outbox_report", sent, run_ids=plain_array(silent))


async def _begin_successors(connection: Connection, successors: list[tuple[LiveRun, Successor]]) -> None:
    # The version is that of the code which asked: it knows what the arguments mean to it.
    signals = [
        (successor.id.hex, place - len(successor.signals), name, payload)
        for _, successor in successors
        for place, (name, payload) in enumerate(successor.signals)
    ]
    await connection.execute(
        load("outbox_continue"),
        {
            "olds": plain_array([live.hex for live, _ in successors]),
            "news": plain_array([successor.id.hex for _, successor in successors]),
            "versions": plain_array([live.definition.version for live, _ in successors]),
            "hashes": text_array([live.definition.version_hash for live, _ in successors]),
            "inputs": text_array([successor.input for _, successor in successors]),
            "signal_runs": plain_array([signal[0] for signal in signals]),
            "signal_places": plain_array([signal[1] for signal in signals]),
            "signal_names": text_array([signal[2] for signal in signals]),
            "signals": text_array([signal[3] for signal in signals]),
        },
        prepare=True,
    )


async def _adopt_children(connection: Connection, successors: list[tuple[LiveRun, Successor]]) -> None:
    await connection.execute(
        load("outbox_adopt"),
        {
            "olds": plain_array([live.hex for live, _ in successors]),
            "news": plain_array([successor.id.hex for _, successor in successors]),
        },
        prepare=True,
    )


async def _cancel(connection: Connection, cancels: list[Cancellation], sent: Sent) -> None:
    await _tell(
        connection,
        "outbox_cancels",
        sent,
        run_ids=plain_array([cancel.run_id.hex for cancel in cancels]),
        payloads=text_array([json.dumps({"reason": cancel.reason}) for cancel in cancels]),
        deliveries=text_array([cancel.delivery_id for cancel in cancels]),
    )


async def _cascade(connection: Connection, cascades: list[tuple[LiveRun, str]], sent: Sent) -> None:
    await _tell(
        connection,
        "outbox_cascade",
        sent,
        parents=plain_array([live.hex for live, _ in cascades]),
        payloads=text_array([json.dumps({"reason": reason}) for _, reason in cascades]),
    )


async def _tell(connection: Connection, statement: str, sent: Sent, **parameters: str) -> None:
    """Execute a statement that sends messages; it returns the run each has gone to, and who owns that."""
    cursor = await connection.execute(load(statement), parameters, prepare=True)
    sent.news.update(await cursor.fetchall())


def _chunks(children: list[tuple[LiveRun, ChildStart]]) -> Iterator[list[tuple[LiveRun, ChildStart]]]:
    chunk: list[tuple[LiveRun, ChildStart]] = []
    size = 0
    for live, child in children:
        if chunk and size + len(child.input) > MOST_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append((live, child))
        size += len(child.input)
    if chunk:
        yield chunk
