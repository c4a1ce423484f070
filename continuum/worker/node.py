"""A worker node: assembles connections, lease, journal, engine and activities, and keeps them going.

A node that loses its lease (it was cut off, or stopped for too long) drops everything it held, without writing, and comes
back as a new node. What it held is by then, or soon, in the hands of others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from continuum import discovery
from continuum.conf import settings as continuum_settings
from continuum.core.definitions import registry
from continuum.worker import claims
from continuum.worker.activities import ActivityExecutor
from continuum.worker.claims import ClaimedRun
from continuum.worker.clock import Clock
from continuum.worker.connections import Backoff, connect
from continuum.worker.engine import Engine
from continuum.worker.journal import JOURNAL_SESSION, Journal
from continuum.worker.leases import Lease, RenewResult
from continuum.worker.maintenance import Maintenance
from continuum.worker.options import NodeOptions
from continuum.worker.timers import Timers
from continuum.worker.versions import register_versions
from continuum.worker.wakes import DONE_CHANNEL, READY_CHANNEL, Hints, Listener

__all__ = ["Node", "run_node"]

logger = logging.getLogger("continuum.worker")

# Runs claimed by one statement: a share of what may run at once, so that several workers divide a backlog fairly.
MOST_CLAIMED = 200
# Messages fetched by one poll; what is left comes with the next.
MOST_POLLED = 5_000


def run_node(options: NodeOptions) -> int:
    """Run a worker in this process until it is told to stop; returns the exit status.

    The first SIGTERM or SIGINT drains: no new runs, current activities get ``drain_timeout`` seconds, everything is given
    back. A second one leaves at once.
    """
    return asyncio.run(Node(options).run())


class Node:
    """One worker process.

    Args:
        options: what the command line says.
        on_started: called with the listening state once the node serves.
    """

    def __init__(self, options: NodeOptions, *, on_started: Callable[[bool], None] | None = None) -> None:
        self.options = options
        self.name = options.name or f"{socket.gethostname()}:{os.getpid()}"
        self.engine: Engine | None = None
        self._on_started = on_started
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> int:
        """Serve until stopped; returns 0, or 1 when activities had to be left behind at the end of a drain."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        discovery.autodiscover()
        self._handle_signals()
        backoff = Backoff()
        while True:
            session = _Session(self)
            try:
                status = await session.serve(self._stop)
            except (psycopg.Error, OSError) as error:
                if self._stop.is_set():
                    return 1
                pause = backoff.next()
                logger.error("cannot serve (%s); trying again in %.1f s", " ".join(str(error).split()), pause)
                await asyncio.sleep(pause)
                continue
            if status is not None:
                return status
            backoff.reset()

    def stop(self) -> None:
        """Ask the node to drain and stop. May be called from any thread."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    def _handle_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        assert self._loop is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        assert self._stop is not None
        if self._stop.is_set():
            logger.warning("second %s: leaving at once", number.name)
            logging.shutdown()
            os._exit(128 + number)
        logger.info("%s: draining, for at most %g seconds", number.name, self.options.drain_timeout)
        self._stop.set()


class _Session:
    """One life of a node: from registering to leaving, or to losing its lease."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.options = node.options
        self.alias = node.options.database
        self.lost = asyncio.Event()
        self.lost_because = ""
        self.worker_id = 0
        self.clock = Clock()
        self.timers = Timers(asyncio.get_running_loop(), self.clock)
        self.main: psycopg.AsyncConnection[Any] | None = None
        self.claim_wanted = asyncio.Event()
        self.mail_wanted = True
        self.backlog = False
        self.claiming = False
        self.missed: set[UUID] = set()  # runs with news that arrived while they were being claimed
        self.news = asyncio.Event()
        self.news_of: set[UUID] = set()
        self.news_of_all = False
        self.looked = asyncio.Event()  # set by each claim round that found nothing
        self.link_lock = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------------------------

    async def serve(self, stop: asyncio.Event) -> int | None:
        """Serve until ``stop`` is set or the lease is lost; returns the exit status, or None to come back."""
        loop = asyncio.get_running_loop()
        settings = continuum_settings
        options = self.options
        self.hints = Hints(self.alias)
        self.lease = Lease(settings.LEASE_TTL)
        self.main = await self._connect("claims")
        self.worker_id = await self.lease.register(
            self.main,
            name=self.node.name,
            queues=options.queues or (),
            info={"concurrency": options.concurrency, "threads": options.threads},
        )
        self.workflows = sorted({definition.name for definition in registry.workflows()})
        await register_versions(self.main, registry.workflows())
        self.engine = self.node.engine = Engine(
            loop,
            clock=self.clock,
            timers=self.timers,
            concurrency=options.concurrency,
            live_runs=settings.LIVE_RUNS,
            max_value_bytes=settings.MAX_VALUE_BYTES,
            on_room=self._on_room,
            on_done=lambda ids: self.hints.notify(DONE_CHANNEL, ids),
            on_released=lambda: self.hints.notify(READY_CHANNEL),
        )
        self.journal = self.engine.journal = Journal(
            partial(self._connect, "journal"),
            self.worker_id,
            on_durable=self.engine.on_durable,
            on_fenced=self._on_fenced,
            on_refused=self.engine.on_refused,
        )
        self.executor = self.engine.executor = ActivityExecutor(
            loop, threads=options.threads, on_results=self.engine.on_results, clock=self.clock.now_us
        )
        self.listener = Listener(
            settings.LISTEN_DATABASE or self.alias,
            self.worker_id,
            on_ready=self._on_ready,
            on_runs=self._on_runs,
            on_reconnect=self._look_at_all,
        )
        tasks = [
            self._spawn("journal", self.journal.run()),
            self._spawn("hints", self.hints.run()),
            self._spawn("listener", self.listener.run()),
            self._spawn(
                "lease",
                self.lease.renew_forever(partial(self._connect, "lease"), self._on_lost, on_renewed=self._on_renewed),
            ),
            self._spawn("summaries", self.engine.summarise()),
            self._spawn("claims", self._claim_forever()),
            self._spawn("inbox", self._read_news_forever()),
            self._spawn("poll", self._poll_forever()),
            self._spawn("maintenance", self._maintenance().run()),
        ]
        try:
            if self.node._on_started is not None:
                self.node._on_started(await self.listener.settled())
            self.claim_wanted.set()
            await self._until(stop)
            if self.lost.is_set():
                logger.error("lease lost: %s; its runs are dropped, coming back as a new worker", self.lost_because)
                self.engine.lose_all()
                self.journal.discard()
                await self.executor.close(0)
                return None
            return await self._drain(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.main is not None:
                await self.main.close()

    def _spawn(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name=f"continuum {name}")
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        # None of them ends by itself while the lease holds; one that does must not leave a node half alive.
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("%s failed", task.get_name(), exc_info=error)
            self._on_lost(f"{task.get_name()} failed: {error}")

    async def _until(self, stop: asyncio.Event) -> None:
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(self.lost.wait())]
        if self.options.burst:
            waits.append(asyncio.create_task(self._until_idle()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _until_idle(self) -> None:
        """Wait until nothing is left to do: no run makes progress and there is none to claim."""
        assert self.engine is not None
        while True:
            await self.engine.idle()
            self.looked.clear()
            self._look_at_all()
            await self.looked.wait()
            if not self.engine.busy and not self.news.is_set():
                return

    async def _drain(self, tasks: list[asyncio.Task[Any]]) -> int:
        """Give everything back: current activities may end first, new ones do not begin."""
        engine = self.engine
        assert engine is not None
        engine.draining = True
        try:
            async with asyncio.timeout(self.options.drain_timeout):
                await self._use(self.lease.mark_draining)
                left = await self.executor.close(self.options.drain_timeout)
        except TimeoutError:
            left = self.executor.busy
        # The results of activities that have just ended are on their way through the pump and the journal.
        try:
            async with asyncio.timeout(5):
                while engine._work:
                    await asyncio.sleep(0)
                await self.journal.flush()
                engine.release_all()
                await self.journal.flush()
                await self._use(self.lease.leave)
                self.hints.notify(READY_CHANNEL)
                await self.hints.flush(1.0)
        except TimeoutError:
            logger.warning("the runs could not be given back in time; others take them when the lease ends")
            return 1
        if left:
            logger.warning("%d activities did not end in time and will run again elsewhere", left)
        logger.info("stopped; %d runs finished here", engine.finished)
        return 0

    def _maintenance(self) -> Maintenance:
        return Maintenance(
            partial(self._connect, "maintenance"), self.worker_id, on_runs_freed=self._look_at_all
        )

    # -- connections --------------------------------------------------------------------------------------------

    async def _connect(self, purpose: str) -> psycopg.AsyncConnection[Any]:
        return await connect(
            self.alias,
            application_name=f"continuum {purpose} {self.worker_id or ''}".strip(),
            session=JOURNAL_SESSION if purpose in ("journal", "claims") else None,
        )

    async def _use(self, fn: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Any]]) -> Any:
        """Run ``fn`` on the connection for claims and mail, reconnecting as often as it takes."""
        backoff = Backoff()
        async with self.link_lock:
            while True:
                try:
                    if self.main is None:
                        self.main = await self._connect("claims")
                        await self._adopt_unknown(self.main)
                    return await fn(self.main)
                except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                    pause = backoff.next()
                    logger.warning("the connection for claims failed: %s", " ".join(str(error).split()))
                    if self.main is not None:
                        await self.main.close()
                        self.main = None
                    await asyncio.sleep(pause)

    async def _adopt_unknown(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Take up runs that a claim gave to this worker although its answer never arrived."""
        assert self.engine is not None
        owned = await claims.owned_by(connection, self.worker_id)
        unknown = [run for run in owned if run.identity.id not in self.engine.live]
        if unknown:
            await self._admit(connection, unknown)

    # -- claiming -----------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        while True:
            await self.claim_wanted.wait()
            self.claim_wanted.clear()
            await self._use(self._claim_round)

    async def _claim_round(self, connection: psycopg.AsyncConnection[Any]) -> None:
        engine = self.engine
        assert engine is not None
        mail, self.mail_wanted = self.mail_wanted, False
        self.claiming = True
        try:
            while (room := min(engine.room(), MOST_CLAIMED)) > 0:
                claimed = await claims.claim_due(connection, self.worker_id, self.workflows, room)
                if mail and len(claimed) < room:
                    claimed += await claims.claim_mail(
                        connection, self.worker_id, self.workflows, room - len(claimed)
                    )
                if claimed:
                    await self._admit(connection, claimed)
                self.backlog = len(claimed) == room
                if not self.backlog:
                    self.looked.set()
                    return
            self.backlog = True
            self.mail_wanted = self.mail_wanted or mail
        finally:
            self.claiming = False
            if self.missed:
                self._on_runs(list(self.missed))
                self.missed.clear()

    async def _admit(self, connection: psycopg.AsyncConnection[Any], claimed: list[ClaimedRun]) -> None:
        assert self.engine is not None
        again = [run.identity.id for run in claimed if not run.is_new]
        histories = await claims.load_histories(connection, again) if again else {}
        mail: dict[UUID, list[Any]] = {}
        for message in await claims.unread_of_runs(connection, [run.identity.id for run in claimed]):
            mail.setdefault(message.run_id, []).append(message)
        for run in claimed:
            run_id = run.identity.id
            self.engine.admit(run, histories.get(run_id, []), mail.get(run_id, []))

    # -- news ---------------------------------------------------------------------------------------------------

    async def _read_news_forever(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            await self._use(self._read_news)

    async def _read_news(self, connection: psycopg.AsyncConnection[Any]) -> None:
        assert self.engine is not None
        run_ids, everything = self.news_of, self.news_of_all
        self.news_of, self.news_of_all = set(), False
        if everything:
            messages = await claims.unread_of_worker(connection, self.worker_id, MOST_POLLED)
        elif run_ids:
            messages = await claims.unread_of_runs(connection, run_ids)
        else:
            return
        self.engine.deliver(messages)

    def _on_runs(self, run_ids: list[UUID] | None) -> None:
        assert self.engine is not None
        if run_ids is None:
            self.news_of_all = True
        else:
            live = self.engine.live
            self.news_of.update(run_id for run_id in run_ids if run_id in live)
            if self.claiming:
                self.missed.update(run_id for run_id in run_ids if run_id not in live)
            elif any(run_id not in live for run_id in run_ids):
                self._on_ready()  # released meanwhile: the message makes the run claimable, by us or by others
        self.news.set()

    def _on_ready(self) -> None:
        self.mail_wanted = True
        self.claim_wanted.set()

    def _on_room(self) -> None:
        if self.backlog:
            self.claim_wanted.set()

    def _look_at_all(self) -> None:
        self.news_of_all = True
        self.news.set()
        self._on_ready()

    async def _poll_forever(self) -> None:
        # Jittered, so that nodes started together do not ask together for ever.
        interval = continuum_settings.POLL_INTERVAL
        place = 0.0
        while True:
            place = (place + 0.618) % 1.0
            await asyncio.sleep(interval * (0.8 + 0.2 * place))
            self._look_at_all()

    # -- the lease ----------------------------------------------------------------------------------------------

    def _on_renewed(self, result: RenewResult) -> None:
        self.clock.synchronise(result.database_time_us)

    def _on_lost(self, reason: str) -> None:
        self.lost_because = reason
        self.lost.set()

    def _on_fenced(self, live: Any) -> None:
        assert self.engine is not None
        logger.warning("run %s is in other hands now: dropped", live.id)
        self.engine.lose(live)
