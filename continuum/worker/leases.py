"""The lease of a node: one row, renewed by one small update. And what happens to those that let theirs run out.

Runs point at the row of their owner. Whoever finds a node dead says so in its row first, which no journal commit of
that node can overlap, and only then frees its runs; both can be taken up by anybody at any point.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from continuum.worker.connections import Backoff, brief, session_name
from continuum.worker.sql import load
from continuum.worker.suspects import chances
from continuum.worker.task_claims import release_of_dead

__all__ = [
    "LOCK_CLASS",
    "Lease",
    "RenewResult",
    "declare_dead",
    "release_stranded",
]

logger = logging.getLogger("continuum.worker")

LOCK_CLASS = 0x436F6E74
"""First key of the advisory lock a node holds while its process lives ("Cont"); the second is the worker's id."""

# After a restart of the server, how long nodes have to take their locks again.
RESTART_GRACE = 10.0
# A lock that is gone must be gone twice, so far apart: time enough to reconnect after a dropped connection.
LOCK_CONFIRMATION = 0.35
RELEASE_BATCH = 500
# A renewal that is not answered after this share of the lease is attempted over another connection as well: so often.
NEXT_ATTEMPT = 1 / 6
MOST_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class RenewResult:
    """What a renewal found.

    Attributes:
        alive: False when the node was declared dead, or its row is gone.
        database_time_us: the server's clock, in microseconds since the epoch; 0 when not alive.
        round_trip_us: how long the answer took, in microseconds.
    """

    alive: bool
    database_time_us: int
    round_trip_us: int = 0


class Lease:
    """This node's row in ``continuum_workers``.

    Args:
        ttl: seconds from a renewal until others may take the node's runs.
        margin: the share of ``ttl`` by which the node stops earlier than that.

    Attributes:
        worker_id: id of the row; None before ``register``.
        valid_until_monotonic: in terms of ``time.monotonic()``; from then on the node must not let its runs go on.
            Counted from when the last successful renewal was *sent*, so it never lies behind what the server believes.
    """

    def __init__(self, ttl: float, *, margin: float = 0.1) -> None:
        self.ttl = ttl
        self.margin = margin
        self.worker_id: int | None = None
        self.valid_until_monotonic = float("-inf")
        self._renewed = time.monotonic()

    @property
    def valid(self) -> bool:
        """Whether the node may let its runs go on."""
        return time.monotonic() < self.valid_until_monotonic

    @property
    def age(self) -> float:
        """Seconds since the last successful renewal was sent."""
        return time.monotonic() - self._renewed

    async def register(
        self,
        connection: psycopg.AsyncConnection[Any],
        *,
        name: str,
        queues: Iterable[str] = (),
        info: Mapping[str, Any] | None = None,
        workflows: Mapping[str, Mapping[str, int]] | None = None,
    ) -> int:
        """Add this node and return its id.

        Args:
            connection: an autocommit connection.
            name: what people call the node.
            queues: the queues it serves; none means all.
            info: JSON-able facts for people (version, concurrency, …).
            workflows: what it has loaded: by workflow and version hash, the version. None where that is not known.
        """
        sent = time.monotonic()
        cursor = await connection.execute(
            load("worker_register"),
            {
                "name": name,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "queues": json.dumps(list(queues)),
                "info": json.dumps(dict(info or {})),
                "workflows": None if workflows is None else json.dumps(workflows),
                "ttl": self.ttl,
            },
        )
        row = await cursor.fetchone()
        assert row is not None
        self.worker_id = row[0]
        self._extend(sent)
        return row[0]

    async def renew(self, connection: psycopg.AsyncConnection[Any]) -> RenewResult:
        """Push the lease's end ``ttl`` seconds away from now."""
        sent = time.monotonic()
        cursor = await connection.execute(load("worker_renew"), {"worker": self.worker_id, "ttl": self.ttl})
        row = await cursor.fetchone()
        if row is None:
            self.valid_until_monotonic = float("-inf")
            return RenewResult(False, 0)
        self._extend(sent)
        return RenewResult(True, row[0], round((time.monotonic() - sent) * 1e6))

    async def mark_draining(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Show that this node takes no more work."""
        await connection.execute(load("worker_draining"), {"worker": self.worker_id})

    async def leave(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """End the lease. Release the runs first: those still owned count as lost by a dead node."""
        await connection.execute(load("worker_leave"), {"worker": self.worker_id})
        self.valid_until_monotonic = float("-inf")

    async def renew_forever(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        on_lost: Callable[[str], None],
        *,
        on_renewed: Callable[[RenewResult], None] | None = None,
    ) -> None:
        """Renew every third of ``ttl`` over a connection of its own, until cancelled or until the lease is lost.

        A connection of its own, since a renewal must not queue behind a slow commit. A lost lease is not renewed again:
        register a new one.

        Args:
            connect: opens an autocommit connection; called again after each failure.
            on_lost: called once, with the reason as a sentence: the node was declared dead, or could not renew in time.
            on_renewed: called after each renewal.
        """
        connection: psycopg.AsyncConnection[Any] | None = None
        backoff = Backoff(base=0.1, cap=max(0.1, min(5.0, self.ttl / 10)))
        failing = False
        try:
            while True:
                patience = self.valid_until_monotonic - time.monotonic()
                if not failing:
                    # It is not the server that fails: a node that was merely late (stopped, starved) gets a moment to
                    # ask whether it still is alive. As long as nobody has declared it dead, nobody has its runs.
                    patience = max(patience, min(1.0, self.ttl * self.margin / 2))
                asked, connection = connection, None
                answered = await self._first_answer(connect, asked, patience)
                if answered is None:
                    on_lost(self._too_late())
                    return
                try:
                    connection, result = answered.result()
                except (psycopg.Error, OSError) as error:
                    if not failing:
                        logger.warning("cannot renew the lease of this worker, trying again: %s", brief(error))
                    failing = True
                    pause = min(backoff.next(), self.valid_until_monotonic - time.monotonic())
                    if pause > 0:
                        await asyncio.sleep(pause)
                    if not self.valid:
                        on_lost(self._too_late())
                        return
                    continue
                if not result.alive:
                    on_lost("another worker declared this one dead and takes its runs")
                    return
                if failing:
                    logger.info("the lease of this worker is renewed again")
                failing = False
                backoff.reset()
                if on_renewed is not None:
                    on_renewed(result)
                await asyncio.sleep(self.ttl / 3)
        finally:
            if connection is not None:
                await connection.close()

    async def _first_answer(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        connection: psycopg.AsyncConnection[Any] | None,
        patience: float,
    ) -> asyncio.Task[_Renewal] | None:
        """Attempt a renewal; return the attempt that has ended, or None if none has after ``patience`` seconds.

        A connection may be dead without a word, which libpq notices too late for the lease. So after a while another is
        tried beside it; what was merely slow counts all the same.
        """
        deadline = time.monotonic() + patience
        attempts = [asyncio.create_task(self._attempt(connect, connection))]
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                is_last = len(attempts) == MOST_ATTEMPTS
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=left if is_last else min(left, self.ttl * NEXT_ATTEMPT),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                # One that has failed says nothing about those that are still under way.
                for attempt in sorted(done, key=_has_failed):
                    if not _has_failed(attempt) or len(attempts) == 1:
                        attempts.remove(attempt)
                        return attempt
                    attempts.remove(attempt)
                if time.monotonic() >= deadline:
                    return None
                if not done:
                    logger.warning("the renewal of this worker's lease is not answered: trying another connection")
                    attempts.append(asyncio.create_task(self._attempt(connect, None)))
        finally:
            for attempt in attempts:
                _forget(attempt)

    async def _attempt(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        connection: psycopg.AsyncConnection[Any] | None,
    ) -> _Renewal:
        connection = connection or await connect()
        try:
            return connection, await self.renew(connection)
        except BaseException:
            await connection.close()
            raise

    def _extend(self, sent: float) -> None:
        self._renewed = max(self._renewed, sent)
        self.valid_until_monotonic = max(self.valid_until_monotonic, sent + self.ttl * (1 - self.margin))

    def _too_late(self) -> str:
        return f"the lease could not be renewed within {self.ttl * (1 - self.margin):g} seconds"


async def declare_dead(
    connection: psycopg.AsyncConnection[Any],
    me: int,
    *,
    trust_locks: bool = True,
    confirmation: float = LOCK_CONFIRMATION,
) -> list[int]:
    """Declare dead the other nodes that are, free their runs and tasks, and return their ids.

    Any number of nodes may do this at the same time. A node without its lock is looked at again after ``confirmation``
    seconds: it may just be reconnecting.

    Args:
        connection: an autocommit connection.
        me: id of the node that looks; never a suspect itself.
        trust_locks: False where a missing lock may have innocent reasons; then only the leases count.
        confirmation: seconds.
    """
    suspects = await _suspects(connection, me)
    lockless = {worker for worker, expired in suspects.items() if not expired} if trust_locks else set()
    if lockless:
        await asyncio.sleep(confirmation)
        again = await _suspects(connection, me)
        lockless &= again.keys()
        suspects = again
    if not lockless and not any(suspects.values()):
        return []
    cursor = await connection.execute(load("workers_declare_dead"), {"me": me, "lockless": sorted(lockless)})
    dead = sorted(row[0] for row in await cursor.fetchall())
    if held := {worker for worker, expired in suspects.items() if expired}.difference(dead):
        await _cut_off(connection, held)
    if dead:
        await _release(connection, dead)
        await release_of_dead(connection, dead)
    return dead


async def release_stranded(connection: psycopg.AsyncConnection[Any]) -> int:
    """Free the runs whose owner is dead or unknown, and return how many there were.

    ``declare_dead`` does so for the nodes it declares dead; this finds what is left when it was cut short.
    """
    cursor = await connection.execute(load("runs_owners_gone"))
    owners = [row[0] for row in await cursor.fetchall()]
    return await _release(connection, owners) if owners else 0


async def _suspects(connection: psycopg.AsyncConnection[Any], me: int) -> dict[int, bool]:
    """Return the nodes that look dead, and whether it is their lease that ran out."""
    cursor = await connection.execute(
        load("workers_suspect"), {"me": me, "grace": RESTART_GRACE, "lock_class": LOCK_CLASS}
    )
    return dict(await cursor.fetchall())


async def _cut_off(connection: psycopg.AsyncConnection[Any], workers: Iterable[int]) -> None:
    """End what keeps these nodes, whose leases ran out, from being declared dead in the next sweep."""
    cursor = await connection.execute(
        load("workers_cut_off"), {"workers": sorted(workers), "prefix": f"{session_name('journal', None)} "}
    )
    for worker, _ in await cursor.fetchall():
        logger.warning("worker %d is past its lease in the middle of a commit: its session is ended", worker)


async def _release(connection: psycopg.AsyncConnection[Any], owners: list[int]) -> int:
    # Batches, each committed on its own, keep the locks short and let other survivors claim while this goes on.
    released = 0
    parameters = {"owners": owners, "batch": RELEASE_BATCH, **chances()}
    while True:
        cursor = await connection.execute(load("runs_release_dead"), parameters)
        released += cursor.rowcount
        if cursor.rowcount == 0:
            return released


_Renewal = tuple[psycopg.AsyncConnection[Any], RenewResult]


def _has_failed(attempt: asyncio.Task[_Renewal]) -> bool:
    return attempt.cancelled() or attempt.exception() is not None


def _forget(attempt: asyncio.Task[_Renewal]) -> None:
    """Let an attempt end on its own time: cancelling a query on a dead network takes seconds we do not have."""

    def discard(done: asyncio.Task[_Renewal]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.get_loop().create_task(done.result()[0].close())

    attempt.add_done_callback(discard)
    attempt.cancel()
