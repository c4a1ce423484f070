"""One life of a worker node: assembles lease, journal, engine, activities and intake, and keeps them going."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from continuum import telemetry
from continuum.conf import settings as continuum_settings
from continuum.core.definitions import registry
from continuum.models import Worker
from continuum.worker import adoption, paranoia, stalls, telling
from continuum.worker.activities import ActivityExecutor
from continuum.worker.ahead import Ahead, try_claims, try_journal
from continuum.worker.clock import Clock
from continuum.worker.connections import connect, session_name
from continuum.worker.deadlocks import Watchdog
from continuum.worker.draining import Drain
from continuum.worker.engine import Engine
from continuum.worker.heartbeats import Heartbeats
from continuum.worker.intake import Intake
from continuum.worker.journal import JOURNAL_SESSION, Journal
from continuum.worker.keys import Keys
from continuum.worker.leases import Lease, RenewResult
from continuum.worker.links import Link
from continuum.worker.live import LiveRun
from continuum.worker.loaded import Loaded
from continuum.worker.maintenance import Maintenance
from continuum.worker.outbox import Sent
from continuum.worker.queues import DEFAULT_QUEUE, Queues
from continuum.worker.saturation import Saturation
from continuum.worker.supervisor import others_ended
from continuum.worker.tasks import Tasks
from continuum.worker.timers import Timers
from continuum.worker.transactional import Transactions
from continuum.worker.versions import as_loaded, register_versions
from continuum.worker.wakes import (
    DONE_CHANNEL,
    MAIL_CHANNEL,
    READY_CHANNEL,
    TASKS_CHANNEL,
    Hints,
    Listener,
    worker_channel,
)

if TYPE_CHECKING:
    from continuum.worker.node import Node

__all__ = ["Session"]

logger = logging.getLogger("continuum.worker")

# The moment the executor needs beyond its own deadline to end cancelled tasks and tidy connections, in seconds.
TIDYING = 2.0
# How long giving everything back may take once the activities have ended, in seconds.
LEAVE_TIMEOUT = 5.0
# How much of that may be spent waiting for runs whose rows somebody else has locked.
HELD_BACK_TIMEOUT = 3.0


class Session:
    """One life of a node: from registering to leaving, or to losing its lease."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.options = node.options
        self.clock = Clock()
        self.lost = asyncio.Event()
        self.lost_because = ""
        self.worker_id = 0
        self.queues = Queues(self.options.queues, continuum_settings.QUEUES)
        # Runs are the business of the default queue's workers: no step waits for room among the tasks of another.
        self.workflows = registry.workflows() if self.queues.serves(DEFAULT_QUEUE) else []

    async def serve(self, stop: asyncio.Event) -> int | None:
        """Serve until ``stop`` is set or the lease is lost; returns the exit status, or None to come back."""
        with Watchdog(continuum_settings.DEADLOCK_TIMEOUT) as watchdog:
            return await self._serve(stop, watchdog)

    async def _serve(self, stop: asyncio.Event, watchdog: Watchdog) -> int | None:
        new_execution = await paranoia.maker()
        await self._register()
        self._assemble()
        self.engine.watch = watchdog.watch
        self.engine.new_execution = new_execution
        coroutines = {
            "lease": self.lease.renew_forever(
                partial(self._connect, "lease"), self._on_lost, on_renewed=self._on_renewed
            ),
            "journal": self.journal.run(),
            "hints": self.hints.run(),
            "listener": self.listener.run(),
            "summaries": self.engine.summaries.run(),
            "maintenance": self.maintenance.run(),
            "stalls": stalls.Stalls(partial(self._connect, "stalls")).run(),
            "heartbeats": self.heartbeats.run(),
            "keys": self.keys.run(),
            "saturation": self.saturation.run(),
            **self.intake.loops(),
            **self.tasks.loops(),
        }
        for ahead in (self.claims_ahead, self.journal_ahead):
            ahead.open()
        tasks = [self._spawn(name, coroutine) for name, coroutine in coroutines.items()]
        try:
            listening = await self.listener.settled()
            self.node.session, self.node.worker_id = self, self.worker_id
            if self.node.on_started is not None:
                self.node.on_started(listening)
            telemetry.emit(telemetry.worker_started, Worker, worker_id=self.worker_id, name=self.node.name)
            self._look_at_all()
            await self._until(stop)
            status = None if self.lost.is_set() else await self._drain()
            if status is None:
                await self._drop()
            return status
        finally:
            if self.node.session is self:
                self.node.session, self.node.without_lease_since = None, time.monotonic()
            # A worker that is cut off comes back, or ends, although nobody answers over what it had.
            await stalls.end(tasks)
            with stalls.ending_after(stalls.LAST_WORDS):
                await self.claims_ahead.close()
                await self.journal_ahead.close()
            await self.intake.close()
            await self.attempt_link.close()
            await self.tasks.close()

    async def _register(self) -> None:
        self.lease = Lease(continuum_settings.LEASE_TTL)
        connection = await self._connect("start")
        try:
            # Before the lease, which runs from when it is registered: reading what the versions say takes a while.
            with stalls.ending_after(continuum_settings.LEASE_TTL):
                await register_versions(connection, self.workflows)
                self.worker_id = await self.lease.register(
                    connection,
                    name=self.node.name,
                    queues=self.options.queues or (),
                    info={"concurrency": self.options.concurrency, "threads": self.options.threads},
                    workflows=as_loaded(self.workflows),
                )
        finally:
            await connection.close()

    def _assemble(self) -> None:
        loop = asyncio.get_running_loop()
        settings, options = continuum_settings, self.options
        alias = options.database
        self.hints = Hints(alias)
        self.claims_ahead = Ahead(partial(self._connect, "claims"), try_claims)
        self.journal_ahead = Ahead(partial(self._connect, "journal"), partial(try_journal, worker_id=self.worker_id))
        engine = self.engine = self.node.engine = Engine(
            loop,
            clock=self.clock,
            timers=Timers(loop, self.clock),
            concurrency=options.concurrency,
            live_runs=settings.LIVE_RUNS,
            max_value_bytes=settings.MAX_VALUE_BYTES,
            on_room=lambda: self.intake.on_room(),
            on_done=lambda run_ids: self.hints.notify(DONE_CHANNEL, run_ids),
            on_released=self._on_released,
        )
        self.journal = Journal(
            self.journal_ahead,
            self.worker_id,
            on_durable=telling.telling(engine.on_durable),
            on_fenced=self._on_fenced,
            on_refused=engine.on_refused,
            on_sent=self._on_sent,
            on_held_back=engine.on_held_back,
            on_left_out=engine.summaries.left_out,
        )
        self.attempt_link = Link(partial(self._connect, "attempts"), "heartbeats and keys")
        self.heartbeats = Heartbeats(loop, self.attempt_link, self.worker_id)
        self.keys = engine.attempts.key_waits.keys = Keys(self.attempt_link)
        self.executor = ActivityExecutor(
            loop,
            threads=options.threads,
            on_results=engine.attempts.on_results,
            clock=self.clock.now_us,
            transactions=Transactions(alias, self.worker_id, self.clock.now_us, partial(self._connect, "fence")),
            on_beat=self.heartbeats.note,
        )
        engine.connect(self.journal, self.executor)
        self.intake = Intake(
            self.claims_ahead,
            self.worker_id,
            Loaded.of(self.workflows, pinned=adoption.pinned()),
            engine,
            poll_interval=settings.POLL_INTERVAL,
            on_forwarded=self._tell,
        )
        self.tasks = Tasks(
            self._connect,
            self.worker_id,
            queues=self.queues,
            executor=self.executor,
            activities=registry.activities(),
            clock=self.clock,
            poll_interval=settings.POLL_INTERVAL,
            max_recoveries=settings.MAX_RECOVERIES,
            on_sent=self._on_sent,
        )
        engine.attempts.on_slots = self.tasks.on_slots
        self.saturation = Saturation(engine, self.executor, self.tasks.link, self.worker_id)
        self.listener = Listener(
            settings.LISTEN_DATABASE or alias,
            self.worker_id,
            on_ready=self.intake.on_ready,
            on_runs=self.intake.on_runs,
            on_reconnect=self._look_at_all,
            on_tasks=self.tasks.look,
        )
        self.maintenance = Maintenance(
            partial(self._connect, "maintenance"),
            self.worker_id,
            pinned=adoption.pinned(),
            on_runs_freed=self._look_at_all,
        )

    async def _connect(self, purpose: str) -> psycopg.AsyncConnection[Any]:
        return await connect(
            self.options.database,
            application_name=session_name(purpose, self.worker_id),
            session=JOURNAL_SESSION if purpose in ("journal", "claims", "tasks", "outcomes") else None,
        )

    def _spawn(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name=f"continuum {name}")
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        # None of them ends by itself while the lease holds; one that fails must not leave a node half alive.
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("%s failed", task.get_name(), exc_info=error)
            self._on_lost(f"{task.get_name()} failed: {error}")

    async def _until(self, stop: asyncio.Event) -> None:
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(self.lost.wait())]
        if self.options.burst:
            waits.append(asyncio.create_task(self._nothing_left()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _nothing_left(self) -> None:
        if self.options.stays_for is not None:
            await others_ended(self.options.stays_for)
        while True:
            await self.engine.idle()
            news = await self.tasks.nothing_left()
            if await self.intake.nothing_left() and not self.tasks.busy and self.tasks.news == news:
                return

    async def _drop(self) -> None:
        then = "" if self.node.stopping else ", coming back as a new worker"
        logger.error("lease lost: %s; its runs are dropped%s", self.lost_because, then)
        about = {"worker_id": self.worker_id, "name": self.node.name, "reason": self.lost_because}
        telemetry.emit(telemetry.lease_lost, Worker, **about)
        self.engine.lose_all()
        self.journal.discard()
        await self.executor.close(0)

    async def _drain(self) -> int | None:
        """Give everything back: current activities may end first, new ones do not begin.

        Returns:
            int: the exit status; None when the lease was lost meanwhile.
        """
        Drain(self.engine, self.executor, self.tasks).begin()
        ending, lost = asyncio.create_task(self._let_end()), asyncio.create_task(self.lost.wait())
        try:
            with stalls.ending_after(self.options.drain_timeout + TIDYING + stalls.LAST_WORDS):
                await asyncio.wait({ending, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                return None
            left = ending.result()
        finally:
            ending.cancel()
            lost.cancel()
        try:
            with stalls.ending_after(LEAVE_TIMEOUT + stalls.LAST_WORDS):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    # The results of activities that have just ended are still on their way.
                    given_back = await self.tasks.leave()
                    await self.engine.quiesce()
                    await self.heartbeats.flush()
                    self.engine.release_all()
                    await self.journal.flush()
                    locked = await self.journal.give_up_held_back(HELD_BACK_TIMEOUT)
                    await self.intake.use(self.lease.leave)
                    self.hints.notify(READY_CHANNEL)
                    if given_back:
                        self.hints.notify(TASKS_CHANNEL)
                    await self.hints.flush(1.0)
        except TimeoutError:
            logger.warning("the runs could not be given back in time; others take them when the lease ends")
            return 1
        if locked:
            logger.warning(
                "%d runs could not be given back, as another transaction has locked their rows (run %s): others take "
                "them when it has ended, and go on from what was recorded",
                len(locked),
                locked[0].id,
            )
        if left:
            logger.warning("%d activities did not end in time and will run again elsewhere", left)
        about = {"worker_id": self.worker_id, "name": self.node.name, "runs_ended": self.engine.finished}
        telemetry.emit(telemetry.worker_stopped, Worker, **about)
        await asyncio.to_thread(telemetry.flush)
        logger.info("stopped; %d runs finished here", self.engine.finished)
        return 1 if locked else 0

    async def _let_end(self) -> int:
        """Let the activities that are under way end; returns how many did not in time."""
        patience = self.options.drain_timeout
        try:
            async with asyncio.timeout(patience + TIDYING):
                left, *_ = await asyncio.gather(
                    self.executor.close(patience), self.intake.use(self.lease.mark_draining), self.tasks.hand_back()
                )
        except TimeoutError:
            left = self.executor.busy
        return left

    def _look_at_all(self) -> None:
        self.intake.look_at_all()
        self.tasks.look()

    def _on_renewed(self, result: RenewResult) -> None:
        self.clock.synchronise(result.database_time_us, result.round_trip_us)

    def _on_released(self, run_ids: list[UUID]) -> None:
        # Due at once, or with mail that came while they were on their way out: whoever has room may take them.
        self.hints.notify(READY_CHANNEL)
        self.hints.notify(MAIL_CHANNEL, run_ids)

    def _on_sent(self, sent: Sent) -> None:
        self._tell(sent.news)
        if sent.keys:
            self.engine.attempts.key_waits.look_again(sent.keys)
        if sent.ready:
            self.intake.on_ready()
            self.hints.notify(READY_CHANNEL)
        if sent.continued:
            self.intake.on_continued(sent.continued)
        if sent.queues:
            self.tasks.on_sent(sent.queues)
            self.hints.notify(TASKS_CHANNEL)

    def _tell(self, news: dict[UUID, int | None]) -> None:
        """Whoever owns these runs, or may claim them, learns that they have a message."""
        here = [run_id for run_id, owner in news.items() if owner is None or owner == self.worker_id]
        if here:
            self.intake.on_runs(here)
        for run_id, owner in news.items():
            if owner != self.worker_id:
                self.hints.notify(MAIL_CHANNEL if owner is None else worker_channel(owner), (run_id,))

    def _on_lost(self, reason: str) -> None:
        self.lost_because = reason
        self.lost.set()

    def _on_fenced(self, live: LiveRun) -> None:
        logger.warning("run %s is in other hands now: dropped", live.id)
        self.engine.lose(live)
