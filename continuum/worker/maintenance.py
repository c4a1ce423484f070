"""What some node has to do now and then for all of them. Any node may, any number of them at the same time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from continuum import telemetry
from continuum.conf import settings as continuum_settings
from continuum.models import Worker
from continuum.worker.connections import Backoff, brief
from continuum.worker.leases import RESTART_GRACE, declare_dead, release_stranded
from continuum.worker.partitions import ensure_partitions
from continuum.worker.sql import load
from continuum.worker.stranded import park_unknown
from continuum.worker.task_claims import release_stranded as release_stranded_tasks
from continuum.worker.wakes import READY_CHANNEL, TASKS_CHANNEL

__all__ = ["Maintenance"]

logger = logging.getLogger("continuum.worker")

SWEEP_EVERY = 0.9
STRANDED_EVERY = 5.0
PRUNE_EVERY = 600.0
PARTITIONS_EVERY = 3600.0
DEAD_WORKERS_KEPT = 86_400.0
UNREAD_KEPT = 3_600.0
PRUNE_BATCH = 1_000


@dataclass(slots=True, eq=False)
class _Duty:
    name: str
    every: float
    do: Callable[[psycopg.AsyncConnection[Any]], Awaitable[object]]
    if_forbidden: str = ""
    due: float = 0.0
    failing: bool = False


class Maintenance:
    """The rounds of one node.

    Args:
        connect: opens an autocommit connection; called again after a failure.
        worker_id: this node, which never looks dead to itself.
        pinned: runs go on with the very code they were started with only.
        on_runs_freed: called on the loop when runs of dead nodes have become claimable; other nodes are told as well.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        worker_id: int,
        *,
        pinned: bool = False,
        on_runs_freed: Callable[[], None] = lambda: None,
    ) -> None:
        self.worker_id = worker_id
        self._connect = connect
        self._pinned = pinned
        self._on_runs_freed = on_runs_freed
        self._trust_locks_from = 0.0
        # Whoever has just come may be the first of many.
        self._code_missed_from = time.monotonic() + continuum_settings.LEASE_TTL
        self._duties = [
            _Duty("looking for dead workers", SWEEP_EVERY, self.sweep),
            _Duty("freeing runs of dead workers", STRANDED_EVERY, self.free_stranded),
            _Duty("freeing activities of dead workers", STRANDED_EVERY, self.free_stranded_tasks),
            _Duty("parking runs that nobody has the code for", STRANDED_EVERY, self.park_unknown),
            _Duty("noting which versions are at work", PRUNE_EVERY, self.note_versions),
            _Duty(
                "making partitions of the history",
                PARTITIONS_EVERY,
                self.make_partitions,
                if_forbidden="somebody who may make tables can make them: manage.py continuum_partitions --create",
            ),
            _Duty("deleting old rows", PRUNE_EVERY, self.prune),
        ]

    async def run(self) -> None:
        """Do each duty when it is due, until cancelled. One that fails does not keep the others from being done."""
        connection: psycopg.AsyncConnection[Any] | None = None
        backoff = Backoff()
        unreachable = False
        try:
            while True:
                duty = min(self._duties, key=lambda duty: duty.due)
                await asyncio.sleep(max(0.0, duty.due - time.monotonic()))
                try:
                    connection = connection or await self._connect()
                except (psycopg.Error, OSError) as error:
                    if not unreachable:
                        logger.warning("maintenance cannot reach the database, trying again: %s", brief(error))
                    unreachable = True
                    self._distrust_locks()
                    await asyncio.sleep(backoff.next())
                    continue
                unreachable = False
                backoff.reset()
                await self._perform(duty, connection)
                # Not all nodes in step: the first to look has the work, the others find nothing.
                duty.due = time.monotonic() + duty.every * random.uniform(0.7, 1.0)
                if connection.closed:
                    connection = None
                    self._distrust_locks()
        finally:
            if connection is not None:
                await connection.close()

    async def _perform(self, duty: _Duty, connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            await duty.do(connection)
        except Exception as error:
            # Once for each spell: what fails every second must not fill the log.
            if not duty.failing:
                said = brief(error)
                if duty.if_forbidden and isinstance(error, psycopg.errors.InsufficientPrivilege):
                    said = f"{said}; {duty.if_forbidden}"
                logger.warning("%s failed: %s", duty.name, said, exc_info=not isinstance(error, psycopg.Error))
            duty.failing = True
        else:
            if duty.failing:
                logger.info("%s works again", duty.name)
            duty.failing = False

    def _distrust_locks(self) -> None:
        # Where we lost our connection, others may have lost theirs and with them their locks (a restart, a fail-over,
        # a network that was away): they get time to come back.
        self._trust_locks_from = time.monotonic() + RESTART_GRACE

    async def sweep(self, connection: psycopg.AsyncConnection[Any]) -> list[int]:
        """Declare dead the nodes that are, free their runs, and return the nodes' ids."""
        dead = await declare_dead(connection, self.worker_id, trust_locks=time.monotonic() >= self._trust_locks_from)
        if dead:
            logger.warning("declared dead: %s; their runs go on elsewhere", ", ".join(f"worker {id}" for id in dead))
            for worker_id in dead:
                telemetry.emit(telemetry.worker_died, Worker, worker_id=worker_id)
            await self._announce(connection)
        return dead

    async def free_stranded(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Free the runs whose owner is dead or unknown, and return how many there were."""
        freed = await release_stranded(connection)
        if freed:
            logger.info("%d runs of dead workers were still theirs and are free now", freed)
            await self._announce(connection)
        return freed

    async def free_stranded_tasks(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Free the tasks whose worker is dead or unknown, and return how many there were."""
        freed = await release_stranded_tasks(connection)
        if freed:
            logger.info("%d activities of dead workers are free for others", freed)
            await self._announce(connection)
        return freed

    async def park_unknown(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Park the runs that nobody has had the code for, for as long as a lease, and return how many there were."""
        if time.monotonic() < self._code_missed_from:
            return 0
        parked = await park_unknown(connection, grace=continuum_settings.LEASE_TTL, pinned=self._pinned)
        for workflow, number in parked.items():
            logger.warning("%d runs of %s are parked: no live worker has their code", number, workflow)
        return parked.total()

    async def note_versions(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Note that the versions this node has loaded are at work, and return how many there are."""
        return (await connection.execute(load("versions_seen"), {"worker": self.worker_id})).rowcount

    async def make_partitions(self, connection: psycopg.AsyncConnection[Any]) -> list[str]:
        """Make the partitions of the months to come, and return their names."""
        cursor = _ThreadsCursor(connection, asyncio.get_running_loop())
        thread = asyncio.create_task(asyncio.to_thread(ensure_partitions, cursor, datetime.now(UTC)))
        try:
            made = await asyncio.shield(thread)
        except asyncio.CancelledError:
            # The connection is closed next. Whoever still used it then would read memory that libpq has freed.
            cursor.withdraw()
            await asyncio.gather(thread, return_exceptions=True)
            raise
        if made:
            logger.info("made %s", ", ".join(made))
        return made

    async def prune(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Delete nodes that died long ago and messages nobody will read, and return how many rows."""
        return await self._prune(connection, "workers_prune", DEAD_WORKERS_KEPT) + await self._prune(
            connection, "inbox_prune", UNREAD_KEPT
        )

    async def _prune(self, connection: psycopg.AsyncConnection[Any], statement: str, age: float) -> int:
        deleted = 0
        while True:
            cursor = await connection.execute(load(statement), {"age": age, "batch": PRUNE_BATCH})
            deleted += cursor.rowcount
            if cursor.rowcount < PRUNE_BATCH:
                return deleted

    async def _announce(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._on_runs_freed()
        await connection.execute(load("hints_send"), {"channels": [READY_CHANNEL, TASKS_CHANNEL], "payloads": ["", ""]})


class _ThreadsCursor:
    """As much of a DB-API cursor as a thread needs to have the loop run its statements."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._rows: list[Any] = []
        self._under_way: asyncio.Task[Any] | None = None
        self._withdrawn = False

    def execute(self, statement: str, parameters: Any = None) -> None:
        self._rows = asyncio.run_coroutine_threadsafe(self._execute(statement, parameters), self._loop).result()

    def fetchall(self) -> list[Any]:
        return self._rows

    def withdraw(self) -> None:
        """Have what is under way cancelled, and nothing more executed. On the loop."""
        self._withdrawn = True
        if self._under_way is not None:
            self._under_way.cancel()

    async def _execute(self, statement: str, parameters: Any) -> list[Any]:
        if self._withdrawn:
            raise asyncio.CancelledError
        self._under_way = asyncio.current_task()
        try:
            cursor = await self._connection.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description else []
        finally:
            self._under_way = None
