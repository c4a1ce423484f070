"""The statements of one commit of the journal, with or without a look at who holds what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from continuum.conf import settings as continuum_settings
from continuum.worker import flights
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.event_rows import COPY_EVENTS, event_rows
from continuum.worker.exchange import Connection, Rows, Transaction, execute, execute_and_tell
from continuum.worker.live import Entry, LiveRun, RowUpdate
from continuum.worker.outbox import Sent
from continuum.worker.outbox_writing import write_outbox
from continuum.worker.sql import load

__all__ = ["LeaseLockedError", "is_end", "landed", "record", "record_end", "record_free", "statement"]

# How long a commit waits for a lock: longer than others of ours take to commit, short enough for all who wait along.
PATIENCE = "150ms"
# When no row of a run is in the way any more.
PATIENCE_WHEN_FREE = "50ms"

# From so many events on a commit brings them by COPY: what that saves outweighs the two round trips it takes.
COPY_FROM = 64


class LeaseLockedError(Exception):
    """Somebody holds the row of this worker."""


async def record(connection: Connection, worker_id: int, batch: list[Entry]) -> tuple[Rows, Sent | None]:
    """Commit a batch.

    Returns:
        tuple: the ids of the runs this worker does not hold, in which case nothing is written; and whom to tell, if
            anything was sent.

    Raises:
        psycopg.errors.LockNotAvailable: somebody holds something that is to be written, and does not let go.
    """
    if not _is_copied(batch) and all(entry.outbox is None for entry in batch):
        return await execute(connection, *statement(worker_id, batch)), None
    async with Transaction(connection) as transaction:
        return await _record(connection, transaction, worker_id, batch, PATIENCE)


def is_end(connection: Connection, batch: list[Entry]) -> bool:
    """Tell whether a batch is the end of one run and nothing else, of which the same session may tell."""
    if len(batch) > 1:
        return False
    [entry] = batch
    if entry.update is None or entry.update.completed_us is None or entry.outbox is not None:
        return False
    return not _is_copied(batch) and connection.prepare_threshold is not None and flights.possible()


async def record_end(connection: Connection, worker_id: int, entry: Entry) -> Rows:
    """Commit a batch that ``is_end``; whoever waits for that is told in the same breath, as the entry says then.

    Returns:
        The id of the run, if this worker does not hold it; then nothing is written.
    """
    about = {"run_id": entry.live.hex}
    rows, told = await execute_and_tell(connection, *statement(worker_id, [entry]), load("hint_of_end"), about)
    entry.told = told and not rows
    return rows


async def record_free(
    connection: Connection, worker_id: int, batch: list[Entry], on_left_out: Callable[[LiveRun], None]
) -> tuple[Rows, Sent, set[UUID]]:
    """Commit what of a batch can be without waiting for those who hold rows of runs.

    Args:
        on_left_out: called with runs whose summary is taken out of their entries, as somebody holds the row.

    Returns:
        tuple: as for ``record``; and the ids of the runs of which nothing is written, for the same reason.

    Raises:
        LeaseLockedError: somebody holds the row of the worker.
        psycopg.errors.LockNotAvailable: somebody holds something else, and does not let go.
    """
    rows: Rows = []
    sent = Sent()
    async with Transaction(connection) as transaction:
        locked = _without_rows(batch, await _held_rows(transaction, worker_id, batch), on_left_out)
        free = [entry for entry in batch if entry.live.id not in locked]
        if free:
            rows, sent = await _record(connection, transaction, worker_id, free, PATIENCE_WHEN_FREE)
    return rows, sent, locked


async def _held_rows(transaction: Transaction, worker_id: int, batch: list[Entry]) -> set[UUID]:
    """Lock the rows of runs that a batch writes to; returns the ids of those that somebody else holds."""
    asked = [entry.live for entry in batch if entry.update is not None]
    [(lease_locked, held)] = await transaction.execute(
        load("journal_locked"),
        {
            "worker": worker_id,
            "open_for": _open_for(),
            "run_ids": plain_array([live.hex for live in asked]),
            "tokens": plain_array([live.token for live in asked]),
        },
    )
    if lease_locked:
        raise LeaseLockedError
    return set(held)


def _without_rows(batch: list[Entry], held: set[UUID], on_left_out: Callable[[LiveRun], None]) -> set[UUID]:
    """Take out what entries can do without that writes to these rows; returns the runs whose entries cannot."""
    locked: set[UUID] = set()
    for entry in batch:
        live, update, outbox = entry.live, entry.update, entry.outbox
        if update is None or live.id not in held:
            continue
        if update.keep_owner and (outbox is None or outbox.adopted is None):
            entry.update = None
            on_left_out(live)
        else:
            locked.add(live.id)
    return locked


def _is_copied(batch: list[Entry]) -> bool:
    return sum(len(entry.events) for entry in batch) >= COPY_FROM


async def _record(
    connection: Connection, transaction: Transaction, worker_id: int, batch: list[Entry], patience: str
) -> tuple[Rows, Sent]:
    copied = event_rows(batch) if _is_copied(batch) else None
    rows = await transaction.execute(*statement(worker_id, batch, patience, with_events=copied is None))
    if rows:
        await transaction.rollback()
        return rows, Sent()
    sends = any(entry.outbox is not None for entry in batch)
    if copied is not None:
        await transaction.copy(COPY_EVENTS, copied, last=not sends)
    return rows, await write_outbox(connection, batch) if sends else Sent()


async def landed(connection: Connection, batch: list[Entry]) -> set[UUID]:
    """Return the runs whose entries a commit has written whose acknowledgement was lost.

    An entry without events needs no answer: writing it again does the same again, or finds the run given up,
    as it wanted.
    """
    asked = [entry for entry in batch if entry.events]
    parameters = {
        "run_ids": plain_array([entry.live.hex for entry in asked]),
        "tokens": plain_array([entry.live.token for entry in asked]),
        "seqs": plain_array([entry.events[-1].seq for entry in asked]),
    }
    cursor = await connection.execute(load("journal_landed"), parameters)
    return {row[0] for row in await cursor.fetchall()}


def statement(
    worker_id: int, batch: list[Entry], patience: str = PATIENCE, *, with_events: bool = True
) -> tuple[str, dict[str, Any]]:
    """Return the statement that records a batch, and its parameters.

    What the batch has nothing for is left out: most commits write events alone, and each part costs the server a tenth
    of such a statement and us the making of its arrays.

    Args:
        worker_id: who records.
        batch: at most one entry of each run.
        patience: for how long to wait for a lock, as PostgreSQL reads it.
        with_events: False if the events come in another way.
    """
    parameters: dict[str, Any] = {
        "worker": worker_id,
        "patience": patience,
        "open_for": _open_for(),
        "run_ids": plain_array([entry.live.hex for entry in batch]),
        "tokens": plain_array([entry.live.token for entry in batch]),
    }
    without = set()
    if with_events and (events := [(entry.live.hex, event) for entry in batch for event in entry.events]):
        parameters["event_runs"] = plain_array([run for run, _ in events])
        parameters["seqs"] = plain_array([event.seq for _, event in events])
        parameters["types"] = plain_array([event.type for _, event in events])
        parameters["command_ids"] = text_array([event.command_id for _, event in events])
        parameters["names"] = text_array([event.name for _, event in events])
        parameters["data"] = text_array([event.data for _, event in events])
        parameters["times"] = plain_array([event.time_us for _, event in events])
    else:
        without.add("written")
    for part, messages in (
        ("consumed", [(entry.live.hex, entry.consumed) for entry in batch if entry.consumed]),
        ("kept", [(entry.live.hex, entry.kept) for entry in batch if entry.kept]),
    ):
        if messages:
            parameters[f"{part}_runs"] = plain_array([run for run, ids in messages for _ in ids])
            parameters[part] = plain_array([message for _, ids in messages for message in ids])
        else:
            without.add(part)
    if changed := [(entry.live, entry.update) for entry in batch if entry.update is not None]:
        parameters.update(_rows(changed))
    else:
        without.add("updated")
    return load("journal", frozenset(without)), parameters


def _open_for() -> str:
    """For how long a transaction may stay open while we say nothing.

    That is over before our lease is, which is renewed when two thirds of it are left.
    """
    return f"{continuum_settings.LEASE_TTL / 3 * 1000:.0f}ms"


def _rows(changed: list[tuple[LiveRun, RowUpdate]]) -> dict[str, Any]:
    updates = [update for _, update in changed]
    return {
        "update_runs": plain_array([live.hex for live, _ in changed]),
        "update_tokens": plain_array([live.token for live, _ in changed]),
        "states": plain_array([u.state for u in updates]),
        "keep_owner": plain_array([u.keep_owner for u in updates]),
        "waiting_on": text_array([u.waiting_on for u in updates]),
        "next_wakeups": plain_array([u.next_wakeup_us for u in updates]),
        "progress": text_array([u.progress for u in updates]),
        "results": text_array([u.result for u in updates]),
        "errors": text_array([u.error for u in updates]),
        "completed": plain_array([u.completed_us for u in updates]),
        "retention": plain_array([u.retention_us for u in updates]),
        "recoveries": plain_array([u.recoveries for u in updates]),
        "first_in_line": plain_array([u.first_in_line for u in updates]),
    }
