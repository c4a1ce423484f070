"""The journal writer: gathers what all runs of this worker want recorded and commits it together.

While one commit is under way the next batch fills up; so a durable step costs a share of a commit, and the share
shrinks as load grows. There is one writer, so the records of a run reach the database in the order they were made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import psycopg

from continuum.worker.arrays import plain_array, text_array
from continuum.worker.connections import Backoff, transaction
from continuum.worker.event_rows import COPY_EVENTS, event_rows
from continuum.worker.live import Entry, LiveRun, RowUpdate
from continuum.worker.outbox import Sent
from continuum.worker.outbox_writing import write_outbox
from continuum.worker.sql import load

__all__ = ["JOURNAL_SESSION", "Journal"]

logger = logging.getLogger("continuum.worker")

# Enough to make the cost of a commit vanish, small enough to bound how long a run waits behind others.
MOST_EVENTS = 2_000
MOST_BYTES = 8 * 1024 * 1024

# From so many events on a commit brings them by COPY: what that saves outweighs the three round trips it takes.
COPY_FROM = 64

#: Session settings of the journal's connection. The statement is planned once; without these the plan made while the
#: tables were small would scan them for ever after.
JOURNAL_SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


class Journal:
    """Commits entries in groups.

    Args:
        connect: opens the writer's own autocommit connection.
        worker_id: whose lease guards the writes.
        on_durable: called on the loop with the entries a commit made durable, in order.
        on_fenced: called with runs this worker no longer holds: nothing of theirs was written.
        on_refused: called with a run and the error when PostgreSQL refuses what the run wants recorded.
        on_sent: called with whom to tell of what a commit has sent to others.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        worker_id: int,
        *,
        on_durable: Callable[[list[Entry]], None],
        on_fenced: Callable[[LiveRun], None],
        on_refused: Callable[[LiveRun, Entry, Exception], None],
        on_sent: Callable[[Sent], None] = lambda sent: None,
    ) -> None:
        self._connect = connect
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self.worker_id = worker_id
        self._on_durable = on_durable
        self._on_fenced = on_fenced
        self._on_refused = on_refused
        self._on_sent = on_sent
        self._open: dict[LiveRun, Entry] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._statement = load("journal")
        self.commits = 0
        self.events = 0

    def entry(self, live: LiveRun) -> Entry:
        """Return the entry that the next commit takes along for ``live``, opening one if need be."""
        entry = live.open_entry
        if entry is None:
            live.open_entry = live.last_entry = entry = Entry(live)
            live.unacknowledged += 1
            self._open[live] = entry
            self._idle.clear()
            self._wake.set()
        return entry

    def drop(self, live: LiveRun) -> None:
        """Forget what ``live`` has handed over and no commit has taken along yet."""
        if live.open_entry is not None:
            self._open.pop(live, None)
            live.unacknowledged -= 1
            live.open_entry = live.last_entry = None

    async def flush(self) -> None:
        """Wait until everything handed over so far is durable or given up."""
        await self._idle.wait()

    def discard(self) -> None:
        """Forget what is not written yet: the lease is lost, it would change nothing."""
        for entry in self._open.values():
            entry.live.open_entry = None
        self._open.clear()

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._open:
                    await self._commit(self._take())
                self._idle.set()
        finally:
            if self._connection is not None:
                await self._connection.close()

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        events = size = 0
        for entry in list(self._open.values()):
            batch.append(entry)
            entry.live.open_entry = None
            del self._open[entry.live]
            events += len(entry.events) + 1
            size += entry.size
            if events >= MOST_EVENTS or size >= MOST_BYTES:
                break
        return batch

    async def _commit(self, batch: list[Entry]) -> None:
        backoff = Backoff()
        while True:
            try:
                lost = await self._write(batch)
                break
            except (psycopg.Error, ValueError) as error:  # ValueError: text that has no encoding
                # Something in the batch is not acceptable. Halve until the culprit stands alone: its neighbours go on.
                if len(batch) > 1:
                    middle = len(batch) // 2
                    await self._commit(batch[:middle])
                    await self._commit(batch[middle:])
                    return
                if not _will_pass(error):
                    logger.error("run %s: PostgreSQL refused its record: %s", batch[0].live.id, _line(error))
                    self._on_refused(batch[0].live, batch[0], error)
                    return
                logger.warning("a commit failed and is tried again: %s", _line(error))
            if self._connection is not None:
                await self._connection.close()
                self._connection = None
            await asyncio.sleep(backoff.next())
        durable = []
        for entry in batch:
            if lost and entry.live.id in lost:
                self._on_fenced(entry.live)
            else:
                durable.append(entry)
        if durable:
            self._on_durable(durable)

    async def _write(self, batch: list[Entry]) -> set[UUID]:
        """Write one batch, however often the connection breaks on the way.

        Returns:
            set: ids of the runs this worker does not hold any more.
        """
        backoff = Backoff()
        doubtful = broken = False
        lost: set[UUID] = set()
        while batch:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                if doubtful:
                    landed = await self._landed(self._connection, batch)
                    batch = [entry for entry in batch if entry.live.id not in landed]
                    doubtful = False
                    continue
                rows = await self._execute(self._connection, batch)
                self.commits += 1
                if not rows:
                    self.events += sum(len(entry.events) for entry in batch)
                    break
                lost.update(row[0] for row in rows)
                batch = [entry for entry in batch if entry.live.id not in lost]
            except psycopg.errors.UniqueViolation:
                if not broken:
                    raise
                # The server was still at work on the commit whose connection broke, when we looked for its records.
                doubtful, broken = True, False
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
                logger.info("a commit is tried again: %s", _line(error))
                await asyncio.sleep(backoff.next())
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                if not _is_connection_trouble(error, self._connection):
                    raise
                logger.warning("the journal's connection broke, trying again: %s", _line(error))
                if self._connection is not None:
                    # Whether the commit took place is not known: look before writing again.
                    doubtful = broken = True
                    await self._connection.close()
                    self._connection = None
                await asyncio.sleep(backoff.next())
        return lost

    async def _execute(self, connection: psycopg.AsyncConnection[Any], batch: list[Entry]) -> list[tuple[Any, ...]]:
        """Commit a batch; returns the ids of the runs this worker does not hold, in which case nothing is written."""
        copied = sum(len(entry.events) for entry in batch) >= COPY_FROM
        parameters = self._parameters(batch, with_events=not copied)
        if not copied and all(entry.outbox is None for entry in batch):
            cursor = await connection.execute(self._statement, parameters, prepare=True)
            return await cursor.fetchall()
        sent = Sent()
        async with transaction(connection):
            cursor = await connection.execute(self._statement, parameters, prepare=True)
            rows = await cursor.fetchall()
            if not rows:
                if copied:
                    async with connection.cursor() as cursor, cursor.copy(COPY_EVENTS) as copy:
                        await copy.write(event_rows(batch))
                sent = await write_outbox(connection, batch)
        self._on_sent(sent)
        return rows

    async def _landed(self, connection: psycopg.AsyncConnection[Any], batch: list[Entry]) -> set[UUID]:
        """Tell which entries of a batch the lost commit has written after all.

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

    def _parameters(self, batch: list[Entry], *, with_events: bool = True) -> dict[str, Any]:
        event_runs: list[str] = []
        events = []
        consumed_runs: list[str] = []
        consumed: list[int] = []
        kept_runs: list[str] = []
        kept: list[int] = []
        update_runs: list[str] = []
        update_tokens: list[int] = []
        updates: list[RowUpdate] = []
        for entry in batch:
            hex_ = entry.live.hex
            if entry.events and with_events:
                event_runs += [hex_] * len(entry.events)
                events += entry.events
            if entry.consumed:
                consumed_runs += [hex_] * len(entry.consumed)
                consumed += entry.consumed
            if entry.kept:
                kept_runs += [hex_] * len(entry.kept)
                kept += entry.kept
            if entry.update is not None:
                update_runs.append(hex_)
                update_tokens.append(entry.live.token)
                updates.append(entry.update)
        return {
            "worker": self.worker_id,
            "run_ids": plain_array([entry.live.hex for entry in batch]),
            "tokens": plain_array([entry.live.token for entry in batch]),
            "event_runs": plain_array(event_runs),
            "seqs": plain_array([e.seq for e in events]),
            "types": plain_array([e.type for e in events]),
            "command_ids": text_array([e.command_id for e in events]),
            "names": text_array([e.name for e in events]),
            "data": text_array([e.data for e in events]),
            "times": plain_array([e.time_us for e in events]),
            "consumed_runs": plain_array(consumed_runs),
            "consumed": plain_array(consumed),
            "kept_runs": plain_array(kept_runs),
            "kept": plain_array(kept),
            "update_runs": plain_array(update_runs),
            "update_tokens": plain_array(update_tokens),
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
        }


def _is_connection_trouble(error: BaseException, connection: psycopg.AsyncConnection[Any] | None) -> bool:
    """Tell a broken connection or a server that is not ready from a statement the server refused."""
    if connection is None or connection.closed or isinstance(error, OSError):
        return True
    sqlstate = getattr(error, "sqlstate", None)
    # 08 connection exception, 53 insufficient resources, 57P administrator's shutdown, 25006 read-only standby
    return sqlstate is None or sqlstate[:2] in ("08", "53") or sqlstate[:3] == "57P" or sqlstate == "25006"


def _will_pass(error: BaseException) -> bool:
    """Tell an error that says nothing about the record from one that does: no run may fail for the former."""
    sqlstate = getattr(error, "sqlstate", None) or ""
    # A statement cancelled or timed out, a lock not had in time, a prepared statement that is gone or out of date; 58:
    # trouble with the disk.
    return sqlstate in ("57014", "55P03", "26000", "42P05", "0A000") or sqlstate[:2] == "58"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
