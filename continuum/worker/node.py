"""A worker node: serves in one session after the other, until it is told to stop.

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
import sys
import threading
import time
from collections.abc import Callable

import psycopg

from continuum import discovery
from continuum.conf import settings as continuum_settings
from continuum.determinism import guards
from continuum.worker import probes
from continuum.worker.connections import Backoff
from continuum.worker.engine import Engine
from continuum.worker.options import NodeOptions
from continuum.worker.session import Session

__all__ = ["Node", "run_node"]

logger = logging.getLogger("continuum.worker")

# Seconds that a thread which computes keeps the interpreter from others that want it. The loop wants it some ten times
# on a run's way from its start to its result: with Python's 5 ms, one activity that computes makes that 37 ms in place
# of 13, while threads that all compute are no slower (benchmarks/README.md).
SWITCH_INTERVAL = 0.001

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
    sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
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
        self.session: Session | None = None
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
                with guards.guarding():
                    return await self._serve(self._stop)
        except OSError as error:
            logger.critical("cannot answer probes: %s", error)
            return 1

    async def _serve(self, stop: asyncio.Event) -> int:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                status = await Session(self).serve(stop)
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
