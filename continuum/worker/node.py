"""A worker node: assembles lease, journal, engine, activities and intake, and keeps them going.

A node that loses its lease (it was cut off, or stopped for too long) drops everything it held, without writing, and
comes back as a new node. What it held is by then, or soon, in the hands of others.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from continuum import discovery
from continuum.conf import settings as continuum_settings
from continuum.core.definitions import registry
from continuum.worker import probes
from continuum.worker.activities import ActivityExecutor
from continuum.worker.clock import Clock
from continuum.worker.connections import Backoff, connect
from continuum.worker.deadlocks import Watchdog
from continuum.worker.engine import Engine
from continuum.worker.intake import Intake
from continuum.worker.journal import JOURNAL_SESSION, Journal
from continuum.worker.leases import Lease, RenewResult
from continuum.worker.live import LiveRun
from continuum.worker.maintenance import Maintenance
from continuum.worker.options import NodeOptions
from continuum.worker.outbox import Sent
from continuum.worker.timers import Timers
from continuum.worker.versions import register_versions
from continuum.worker.wakes import (
    DONE_CHANNEL,
    MAIL_CHANNEL,
    READY_CHANNEL,
    Hints,
    Listener,
    worker_channel,
)

__all__ = ["Node", "run_node"]

logger = logging.getLogger("continuum.worker")

# How long giving everything back may take once the activities have ended, in seconds.
LEAVE_TIMEOUT = 5.0
# A node that served for so long was a good one.
STEADY = 10.0


def run_node(options: NodeOptions) -> int:
    """Run a worker in this process until it is told to stop; returns the exit status.

    The first SIGTERM or SIGINT drains: no new runs, current activities get ``drain_timeout`` seconds, everything is
    given back. A second one leaves at once.
    """
    # Thousands of live runs are many objects that stay, and the collector's defaults would walk them again and again;
    # what is loaded by now stays for good.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
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
        self.on_started = on_started
        self.session: _Session | None = None
        self.worker_id: int | None = None
        self.lease_ttl = continuum_settings.LEASE_TTL
        self.without_lease_since = time.monotonic()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> int:
        """Serve until stopped; returns 0, or 1 when runs could not be given back in time."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        discovery.autodiscover()
        self._handle_signals()
        try:
            async with probes.answering(self):
                return await self._serve(self._stop)
        except OSError as error:
            logger.critical("cannot answer probes: %s", error)
            return 1

    async def _serve(self, stop: asyncio.Event) -> int:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                status = await _Session(self).serve(stop)
            except (psycopg.Error, OSError) as error:
                if stop.is_set():
                    return 1
                pause = backoff.next()
                logger.error("cannot serve (%s); trying again in %.1f s", " ".join(str(error).split()), pause)
                await asyncio.sleep(pause)
                continue
            if status is not None:
                return status
            if stop.is_set():
                return 1  # the lease was lost while it was draining, or before it could: nothing is left to give back
            # What breaks a node again and again must not make it come back a thousand times a second.
            if time.monotonic() - began > STEADY:
                backoff.reset()
            await asyncio.sleep(backoff.next())

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop is not None and self._stop.is_set()

    def stop(self) -> None:
        """Ask the node to drain and stop. May be called from any thread."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    def _handle_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
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
        self.clock = Clock()
        self.lost = asyncio.Event()
        self.lost_because = ""
        self.worker_id = 0

    async def serve(self, stop: asyncio.Event) -> int | None:
        """Serve until ``stop`` is set or the lease is lost; returns the exit status, or None to come back."""
        with Watchdog(continuum_settings.DEADLOCK_TIMEOUT) as watchdog:
            return await self._serve(stop, watchdog)

    async def _serve(self, stop: asyncio.Event, watchdog: Watchdog) -> int | None:
        await self._register()
        self._assemble()
        self.engine.watch = watchdog.watch
        coroutines = {
            "journal": self.journal.run(),
            "hints": self.hints.run(),
            "listener": self.listener.run(),
            "lease": self.lease.renew_forever(
                partial(self._connect, "lease"), self._on_lost, on_renewed=self._on_renewed
            ),
            "summaries": self.engine.summaries.run(),
            "maintenance": self.maintenance.run(),
            **self.intake.loops(),
        }
        tasks = [self._spawn(name, coroutine) for name, coroutine in coroutines.items()]
        try:
            listening = await self.listener.settled()
            self.node.session, self.node.worker_id = self, self.worker_id
            if self.node.on_started is not None:
                self.node.on_started(listening)
            self.intake.look_at_all()
            await self._until(stop)
            if self.lost.is_set():
                await self._drop()
                return None
            return await self._drain()
        finally:
            if self.node.session is self:
                self.node.session, self.node.without_lease_since = None, time.monotonic()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.intake.close()

    async def _register(self) -> None:
        self.lease = Lease(continuum_settings.LEASE_TTL)
        workflows = registry.workflows()
        connection = await self._connect("start")
        try:
            self.worker_id = await self.lease.register(
                connection,
                name=self.node.name,
                queues=self.options.queues or (),
                info={"concurrency": self.options.concurrency, "threads": self.options.threads},
            )
            await register_versions(connection, workflows)
        finally:
            await connection.close()

    def _assemble(self) -> None:
        loop = asyncio.get_running_loop()
        settings, options = continuum_settings, self.options
        alias = options.database
        self.hints = Hints(alias)
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
            partial(self._connect, "journal"),
            self.worker_id,
            on_durable=engine.on_durable,
            on_fenced=self._on_fenced,
            on_refused=engine.on_refused,
            on_sent=self._on_sent,
        )
        self.executor = ActivityExecutor(
            loop, threads=options.threads, on_results=engine.attempts.on_results, clock=self.clock.now_us
        )
        engine.connect(self.journal, self.executor)
        self.intake = Intake(
            partial(self._connect, "claims"),
            self.worker_id,
            (definition.name for definition in registry.workflows()),
            engine,
            poll_interval=settings.POLL_INTERVAL,
        )
        self.listener = Listener(
            settings.LISTEN_DATABASE or alias,
            self.worker_id,
            on_ready=self.intake.on_ready,
            on_runs=self.intake.on_runs,
            on_reconnect=self.intake.look_at_all,
        )
        self.maintenance = Maintenance(
            partial(self._connect, "maintenance"), self.worker_id, on_runs_freed=self.intake.look_at_all
        )

    async def _connect(self, purpose: str) -> psycopg.AsyncConnection[Any]:
        return await connect(
            self.options.database,
            application_name=f"continuum {purpose} {self.worker_id or ''}".strip(),
            session=JOURNAL_SESSION if purpose in ("journal", "claims") else None,
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
        while True:
            await self.engine.idle()
            if await self.intake.nothing_left():
                return

    async def _drop(self) -> None:
        logger.error("lease lost: %s; its runs are dropped, coming back as a new worker", self.lost_because)
        self.engine.lose_all()
        self.journal.discard()
        await self.executor.close(0)

    async def _drain(self) -> int:
        """Give everything back: current activities may end first, new ones do not begin."""
        self.engine.draining = True
        try:
            # The executor needs a moment beyond its own deadline to end cancelled tasks and tidy connections.
            async with asyncio.timeout(self.options.drain_timeout + 2):
                await self.intake.use(self.lease.mark_draining)
                left = await self.executor.close(self.options.drain_timeout)
        except TimeoutError:
            left = self.executor.busy
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                # The results of activities that have just ended are still on their way.
                await self.engine.quiesce()
                self.engine.release_all()
                await self.journal.flush()
                await self.intake.use(self.lease.leave)
                self.hints.notify(READY_CHANNEL)
                await self.hints.flush(1.0)
        except TimeoutError:
            logger.warning("the runs could not be given back in time; others take them when the lease ends")
            return 1
        if left:
            logger.warning("%d activities did not end in time and will run again elsewhere", left)
        logger.info("stopped; %d runs finished here", self.engine.finished)
        return 0

    def _on_renewed(self, result: RenewResult) -> None:
        self.clock.synchronise(result.database_time_us, result.round_trip_us)

    def _on_released(self, run_ids: list[UUID]) -> None:
        # Due at once, or with mail that came while they were on their way out: whoever has room may take them.
        self.hints.notify(READY_CHANNEL)
        self.hints.notify(MAIL_CHANNEL, run_ids)

    def _on_sent(self, sent: Sent) -> None:
        mine = [run_id for run_id, owner in sent.news.items() if owner == self.worker_id]
        if mine:
            self.intake.on_runs(mine)
        for run_id, owner in sent.news.items():
            if owner != self.worker_id:
                self.hints.notify(MAIL_CHANNEL if owner is None else worker_channel(owner), (run_id,))
        if sent.ready:
            self.intake.on_ready()
            self.hints.notify(READY_CHANNEL)

    def _on_lost(self, reason: str) -> None:
        self.lost_because = reason
        self.lost.set()

    def _on_fenced(self, live: LiveRun) -> None:
        logger.warning("run %s is in other hands now: dropped", live.id)
        self.engine.lose(live)
