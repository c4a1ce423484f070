"""The journal writer: gathers what all runs of this worker want recorded and commits it together.

While one commit is under way the next batch fills up; so a durable step costs a share of a commit, and the share
shrinks as load grows. There is one writer, so the records of a run reach the database in the order they were made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg

from continuum.worker.connections import Backoff, Troubles
from continuum.worker.held_back import CAREFUL_FOR, HeldBack, tell
from continuum.worker.live import Entry, LiveRun
from continuum.worker.outbox import Sent
from continuum.worker.recording import LeaseLockedError, is_end, landed, record, record_end, record_free

__all__ = ["JOURNAL_SESSION", "Journal"]

logger = logging.getLogger("continuum.worker")

# Enough to make the cost of a commit vanish, small enough to bound how long a run waits behind others.
MOST_EVENTS = 2_000
MOST_BYTES = 8 * 1024 * 1024
# The server may be at a commit for so many seconds after its connection broke: who waits for it waits for ourselves.
DOUBTFUL_FOR = 5.0

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
        on_held_back: called with runs whose records wait for somebody else's lock.
        on_left_out: called with runs whose summary was left out, as somebody holds the row.
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
        on_held_back: Callable[[LiveRun], None] = lambda live: None,
        on_left_out: Callable[[LiveRun], None] = lambda live: None,
    ) -> None:
        self._connect = connect
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self.worker_id = worker_id
        self._on_durable = on_durable
        self._on_fenced = on_fenced
        self._on_refused = on_refused
        self._on_sent = on_sent
        self._on_held_back = on_held_back
        self._on_left_out = on_left_out
        self._held = HeldBack()
        self._careful_until = 0.0
        self._open: dict[LiveRun, Entry] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.commits = 0
        self.events = 0

    @property
    def held_back(self) -> int:
        """How many runs have records that wait for somebody else's lock."""
        return len(self._held)

    def entry(self, live: LiveRun) -> Entry:
        """Return the entry that the next commit takes along for ``live``, opening one if need be."""
        entry = live.open_entry
        if entry is None:
            live.open_entry = live.last_entry = entry = Entry(live)
            live.unacknowledged += 1
            if live.held_back:
                self._held.follow(entry)
            else:
                self._add(entry)
        return entry

    def _add(self, entry: Entry) -> None:
        if not self._open:
            self._idle.clear()
            self._wake.set()
        self._open[entry.live] = entry

    def drop(self, live: LiveRun) -> None:
        """Forget what ``live`` has handed over and no commit has taken along yet."""
        if live.open_entry is not None:
            self._open.pop(live, None)
            self._held.drop_behind(live)
            live.unacknowledged -= 1
            live.open_entry = live.last_entry = None

    def forget(self, live: LiveRun) -> None:
        """Forget all of ``live`` that is not durable, unless a commit is at it right now."""
        self.drop(live)
        self._held.end(live)

    async def flush(self) -> None:
        """Wait until everything handed over so far is durable, given up or held back."""
        await self._idle.wait()

    async def give_up_held_back(self, patience: float) -> list[LiveRun]:
        """Wait for what is held back too, ``patience`` seconds at most, then forget it; returns the runs concerned."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._held or self._open:
                    await self._held.none()
                    await self.flush()
        return self._held.clear()

    def discard(self) -> None:
        """Forget what is not written yet: the lease is lost, it would change nothing."""
        for entry in self._open.values():
            entry.live.open_entry = None
        self._open.clear()
        self._held.clear()

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._held.wait(self._wake)
                self._wake.clear()
                while batch := self._take():
                    await self._commit(batch)
                    if not self._open:
                        self._idle.set()
                self._idle.set()
        finally:
            if self._connection is not None:
                await self._connection.close()

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        events = size = 0
        for entry in [*self._held.due(), *self._open.values()]:
            batch.append(entry)
            if entry.wait is None:
                entry.live.open_entry = None
                del self._open[entry.live]
            else:
                self._held.take(entry.live)
            events += len(entry.events) + 1
            size += entry.size
            if events >= MOST_EVENTS or size >= MOST_BYTES:
                break
        return batch

    async def _commit(self, batch: list[Entry]) -> None:
        backoff = Backoff()
        troubles = Troubles()
        while True:
            try:
                lost, locked = await self._write(batch)
                break
            except (psycopg.Error, ValueError) as error:  # ValueError: text that has no encoding
                # Something in the batch is not acceptable. Halve until the culprit stands alone: its neighbours go on.
                if len(batch) > 1:
                    middle = len(batch) // 2
                    await self._commit(batch[:middle])
                    await self._commit(batch[middle:])
                    return
                if isinstance(error, psycopg.errors.LockNotAvailable):
                    self._hold_back(batch)
                    return
                if not troubles.will_pass(error):  # no run may fail for what says nothing about its record
                    logger.error("run %s: PostgreSQL refused its record: %s", batch[0].live.id, _line(error))
                    self._end_wait(batch[0])
                    self._on_refused(batch[0].live, batch[0], error)
                    return
                logger.warning("a commit failed and is tried again: %s", _line(error))
            if self._connection is not None:
                await self._connection.close()
                self._connection = None
            await asyncio.sleep(backoff.next())
        if locked:
            self._hold_back([entry for entry in batch if entry.live.id in locked])
            batch = [entry for entry in batch if entry.live.id not in locked]
        durable = []
        for entry in batch:
            if entry.wait is not None:
                self._end_wait(entry)
            if lost and entry.live.id in lost:
                self._on_fenced(entry.live)
            else:
                durable.append(entry)
        if durable:
            self._on_durable(durable)

    def _hold_back(self, entries: list[Entry]) -> None:
        new = []
        for entry in entries:
            live = entry.live
            if not live.gone and self._held.hold(entry, self._open.pop(live, None)):
                new.append(entry)
                self._on_held_back(live)
        if new:
            tell(new)

    def _end_wait(self, entry: Entry) -> None:
        if entry.wait is None or not entry.live.held_back:
            return
        logger.info("run %s: waited %.1f s for a lock", entry.live.id, time.monotonic() - entry.wait[0])
        behind = self._held.end(entry.live)
        if behind is not None:
            self._add(behind)

    async def _write(self, batch: list[Entry]) -> tuple[set[UUID], set[UUID]]:
        """Write one batch, however often the connection breaks on the way.

        Returns:
            tuple: ids of the runs this worker does not hold any more; and of those that were not written, since
                somebody holds their rows.

        Raises:
            psycopg.Error: something in the batch is refused, or is locked although it is not the row of a run.
        """
        backoff, pauses = Backoff(), Backoff(base=0.05, cap=0.5)
        doubtful = waiting = False
        doubtful_until = 0.0
        lost: set[UUID] = set()
        locked: set[UUID] = set()
        while batch:
            careful = bool(self._held) or time.monotonic() < self._careful_until
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                if doubtful:
                    written = await landed(self._connection, batch)
                    batch = [entry for entry in batch if entry.live.id not in written]
                    doubtful = False
                    continue
                if careful:
                    rows, skipped = await self._execute_carefully(self._connection, batch)
                    if skipped:
                        locked |= skipped
                        batch = [entry for entry in batch if entry.live.id not in skipped]
                else:
                    rows = await self._execute(self._connection, batch)
                self.commits += 1
                if not rows:
                    self.events += sum(len(entry.events) for entry in batch)
                    break
                lost.update(row[0] for row in rows)
                batch = [entry for entry in batch if entry.live.id not in lost]
            except psycopg.errors.UniqueViolation:
                if not any(entry.doubtful for entry in batch):
                    raise
                # The server was still at work on the commit whose connection broke, when we looked for its records.
                doubtful = True
                for entry in batch:
                    entry.doubtful = False
            except psycopg.errors.LockNotAvailable:
                if not careful:
                    self._be_careful()
                elif time.monotonic() < doubtful_until:
                    doubtful = True
                    await asyncio.sleep(pauses.next())
                else:
                    raise
            except LeaseLockedError:
                if not waiting:
                    logger.warning(
                        "another transaction has locked this worker's own row: nothing is recorded meanwhile"
                    )
                waiting = True
                await asyncio.sleep(pauses.next())
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
                logger.info("a commit is tried again: %s", _line(error))
                await asyncio.sleep(backoff.next())
            except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, OSError) as error:
                if not _is_connection_trouble(error, self._connection):
                    raise
                logger.warning("the journal's connection broke, trying again: %s", _line(error))
                if self._connection is not None:
                    # Whether the commit took place is not known: look before writing again.
                    doubtful = True
                    doubtful_until = time.monotonic() + DOUBTFUL_FOR
                    for entry in batch:
                        entry.doubtful = True
                    await self._connection.close()
                    self._connection = None
                await asyncio.sleep(backoff.next())
        return lost, locked

    async def _execute(self, connection: psycopg.AsyncConnection[Any], batch: list[Entry]) -> list[tuple[Any, ...]]:
        """Commit a batch; returns the ids of the runs this worker does not hold, in which case nothing is written."""
        if not self._open and is_end(connection, batch):  # else the next batch would wait for the hint
            return await record_end(connection, self.worker_id, batch[0])
        rows, sent = await record(connection, self.worker_id, batch)
        if sent is not None:
            self._on_sent(sent)
        return rows

    async def _execute_carefully(
        self, connection: psycopg.AsyncConnection[Any], batch: list[Entry]
    ) -> tuple[list[tuple[Any, ...]], set[UUID]]:
        """``_execute`` for those of a batch whose rows nobody holds; returns the runs of the others as well."""
        rows, sent, locked = await record_free(connection, self.worker_id, batch, self._leave_out)
        if locked:
            self._be_careful()
        self._on_sent(sent)
        return rows, locked

    def _leave_out(self, live: LiveRun) -> None:
        self._be_careful()
        self._on_left_out(live)

    def _be_careful(self) -> None:
        self._careful_until = time.monotonic() + CAREFUL_FOR


def _is_connection_trouble(error: BaseException, connection: psycopg.AsyncConnection[Any] | None) -> bool:
    """Tell a broken connection or a server that is not ready from a statement the server refused."""
    if connection is None or connection.closed or isinstance(error, OSError):
        return True
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return not isinstance(error, psycopg.InternalError)
    # 08 connection exception, 53 insufficient resources, 57P administrator's shutdown, 25006 read-only standby
    return sqlstate[:2] in ("08", "53") or sqlstate[:3] == "57P" or sqlstate == "25006"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
