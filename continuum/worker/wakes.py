"""Hints: hearing them and sending them. Lose every one and all still completes, at the poll interval."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn
from uuid import UUID

import psycopg
from psycopg import sql

from continuum.worker.arrays import text_array
from continuum.worker.connections import Backoff, brief, connect, lends_sessions, session_name
from continuum.worker.exchange import execute
from continuum.worker.leases import LOCK_CLASS
from continuum.worker.sql import load

__all__ = ["DONE_CHANNEL", "MAIL_CHANNEL", "READY_CHANNEL", "TASKS_CHANNEL", "Hints", "Listener", "worker_channel"]

logger = logging.getLogger("continuum.worker")

READY_CHANNEL = "continuum_ready"
MAIL_CHANNEL = "continuum_mail"
TASKS_CHANNEL = "continuum_tasks"
DONE_CHANNEL = "continuum_done"

# A payload holds less than 8,000 bytes: 200 ids of 32 digits and a comma fit with room to spare.
IDS_PER_PAYLOAD = 200
# More ids than this waiting for one channel: "look at all" says it shorter, and the memory stays bounded.
MOST_PENDING_IDS = 20_000
# How long the server has to bring a hint back to a session that listens.
PROBE_TIMEOUT = 2.0
RETRY_LISTENING = 30.0
# Shorter than others take to be sure that a lock is gone: it may be gone at any moment with a session that broke.
RETRY_LOCK = 0.1
# A connection that lasted so long was a good one.
STEADY = 1.0
_PROBE = "continuum_probe_"


def worker_channel(worker_id: int) -> str:
    """Return the channel on which a worker hears of news for its own runs."""
    return f"continuum_worker_{worker_id}"


class Listener:
    """Hears the hints meant for this node, on a connection that also holds the node's advisory lock.

    Whatever arrives together is reported together: one ``on_ready`` and one ``on_runs`` for a burst.

    Args:
        alias: the database to listen on; must not be behind a transaction pooler.
        worker_id: id of this node's row.
        on_ready: a run that nobody owns is due.
        on_runs: these runs have news; None means "look at all".
        on_reconnect: hints may have been missed: look at everything once. Also called at the first connect.
        on_tasks: there are new tasks in some queue.

    Attributes:
        listening: whether hints arrive at present; if not, poll.
    """

    def __init__(
        self,
        alias: str,
        worker_id: int,
        *,
        on_ready: Callable[[], None],
        on_runs: Callable[[list[UUID] | None], None],
        on_reconnect: Callable[[], None],
        on_tasks: Callable[[], None] = lambda: None,
    ) -> None:
        self.alias = alias
        self.worker_id = worker_id
        self.listening = False
        self._on_ready = on_ready
        self._on_runs = on_runs
        self._on_reconnect = on_reconnect
        self._on_tasks = on_tasks
        self._channel = worker_channel(worker_id)
        self._name = session_name("listener", worker_id)
        self._proven = False
        self._settled = asyncio.Event()
        self._heard_ready = False
        self._heard_tasks = False
        self._heard_all = False
        self._heard_runs: dict[UUID, None] = {}
        self._heard_probe = ""

    async def settled(self) -> bool:
        """Wait until it is known for the first time whether hints arrive, and return that."""
        await self._settled.wait()
        return self.listening

    async def run(self) -> None:
        """Listen until cancelled, reconnecting as often as it takes."""
        backoff = Backoff()
        said = logging.NOTSET
        while True:
            began = time.monotonic()
            try:
                trouble = await self._session()
                level, pause = logging.INFO, RETRY_LISTENING
            except (psycopg.Error, OSError) as error:
                trouble, level = f"the connection for hints failed ({brief(error)})", logging.WARNING
                if self.listening and time.monotonic() - began > STEADY:
                    # It had been well: try again at once, the lock must be back before others miss it.
                    said, pause = logging.NOTSET, 0.0
                    backoff.reset()
                else:
                    pause = backoff.next()
            finally:
                self.listening = False
            self._settled.set()
            if level != said:
                # Once for each spell, whatever words the next attempt fails with.
                logger.log(level, "%s; polling until that changes", trouble)
                said = level
            await asyncio.sleep(pause)

    async def _session(self) -> str:
        """Listen over one connection until it breaks; returns a reason if it cannot hear anything at all."""
        connection = await connect(self.alias, application_name=self._name, prepare=False)
        try:
            # Behind a transaction pooler the lock would stay with a session of the pooler's: prove first, lock then.
            # On a connection known to be direct the lock comes first, before others miss it.
            locked = self._proven and await self._lock(connection)
            connection.add_notify_handler(lambda notify: self._hear(notify.channel, notify.payload))
            if not self._proven and not await self._probe(connection):
                return (
                    f"database {self.alias!r} does not deliver notifications (a transaction pooler?): name a direct "
                    'connection in CONTINUUM["LISTEN_DATABASE"] for instant wake-ups'
                )
            self._proven = True
            for channel in (READY_CHANNEL, MAIL_CHANNEL, TASKS_CHANNEL, self._channel):
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            logger.info("news arrives by notification on %r", self.alias)
            # Before any run is claimed: the death of a node without the lock is noticed at the end of its lease only.
            locked = locked or await self._lock(connection)
            self.listening = True
            self._settled.set()
            self._on_reconnect()
            if not locked:
                about = {"lock_class": LOCK_CLASS, "worker": self.worker_id, "name": self._name}
                await connection.execute(load("worker_unlock"), about)
            while not (locked := locked or await self._lock(connection)):
                self._drain(connection)
                self._report()
                await _readable(connection, RETRY_LOCK)
            await self._hear_on(connection)
        finally:
            await connection.close()

    async def _hear_on(self, connection: psycopg.AsyncConnection[Any]) -> NoReturn:
        """Report what arrives, in the callback that finds it, until the connection breaks.

        A task that is woken for it would be a turn of the loop later, and watch the socket anew each time.
        """
        loop = asyncio.get_running_loop()
        fd = connection.fileno()
        broken: asyncio.Future[None] = loop.create_future()

        def hear() -> None:
            try:
                self._drain(connection)
                self._report()
            except Exception as error:
                # At once: libpq may have closed the socket, and the next one to be opened may get its number.
                loop.remove_reader(fd)
                if not broken.done():
                    broken.set_exception(error)

        loop.add_reader(fd, hear)
        # What came along with the answer to a statement does not make the socket readable again.
        hear()
        try:
            await broken
        except asyncio.CancelledError:
            if broken.cancelled():  # and not broken as well
                loop.remove_reader(fd)
            raise
        raise AssertionError("it does not end otherwise")

    async def _probe(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Send a hint from another session and see whether it comes back through this one."""
        nonce = _PROBE + uuid.uuid4().hex
        channel = sql.Identifier(nonce)
        other = await connect(self.alias, application_name=f"continuum probe {self.worker_id}", prepare=False)
        try:
            # Behind a transaction pooler even LISTEN succeeds: it is the answer that never comes. And it would be a
            # session of the pooler's that listens, for ever; so not before this is ruled out as far as can be seen.
            if await lends_sessions(connection, other):
                return False
            await connection.execute(sql.SQL("LISTEN {}").format(channel))
            await other.execute("SELECT pg_notify(%s, '')", (nonce,))
        finally:
            await other.close()
        deadline = time.monotonic() + PROBE_TIMEOUT
        while self._heard_probe != nonce and (left := deadline - time.monotonic()) > 0:
            await _readable(connection, left)
            self._drain(connection)
        await connection.execute(sql.SQL("UNLISTEN {}").format(channel))
        return self._heard_probe == nonce

    async def _lock(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        cursor = await connection.execute(load("worker_lock"), {"lock_class": LOCK_CLASS, "worker": self.worker_id})
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return False
        await connection.execute(load("worker_lock_held"), {"worker": self.worker_id})
        return True

    def _drain(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Take everything that has arrived."""
        pgconn = connection.pgconn
        pgconn.consume_input()
        while notify := pgconn.notifies():
            self._hear(notify.relname.decode(), notify.extra.decode(errors="replace"))

    def _hear(self, channel: str, payload: str) -> None:
        if channel == READY_CHANNEL:
            self._heard_ready = True
        elif channel == TASKS_CHANNEL:
            self._heard_tasks = True
        elif channel.startswith(_PROBE):
            self._heard_probe = channel
        elif channel in (MAIL_CHANNEL, self._channel):
            try:
                for digits in payload.split(","):
                    self._heard_runs[UUID(digits)] = None
            except ValueError:
                # Empty, or not ours to understand: a hint that cannot be read still says that there is news.
                self._heard_all = True

    def _report(self) -> None:
        if self._heard_all or self._heard_runs:
            runs = None if self._heard_all else list(self._heard_runs)
            self._heard_all, self._heard_runs = False, {}
            self._on_runs(runs)
        if self._heard_ready:
            self._heard_ready = False
            self._on_ready()
        if self._heard_tasks:
            self._heard_tasks = False
            self._on_tasks()


class Hints:
    """Sends hints over a connection of its own.

    The first goes at once, those that come while it is under way go together in the next.

    Args:
        alias: the database to send them through; a transaction pooler is fine.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        # None for a channel: no ids, "look at all".
        self._pending: dict[str, dict[UUID, None] | None] = {}
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def notify(self, channel: str, run_ids: Iterable[UUID] = ()) -> None:
        """Have a hint sent soon. Never blocks, never raises; a hint that cannot be sent is dropped.

        To be called on the loop. Without ``run_ids``, or with very many, it says "look at all".
        """
        ids = dict.fromkeys(run_ids)
        known = self._pending.get(channel, ids)
        if not ids or known is None or len(known) + len(ids) > MOST_PENDING_IDS:
            self._pending[channel] = None
        elif known is ids:
            self._pending[channel] = ids
        else:
            known.update(ids)
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        connection: psycopg.AsyncConnection[Any] | None = None
        backoff = Backoff()
        failing = False
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                pending, self._pending = self._pending, {}
                try:
                    if connection is None:
                        connection = await connect(
                            self.alias,
                            application_name="continuum hints",
                            # Nothing is written: there is nothing to wait for.
                            session={"synchronous_commit": "off"},
                        )
                    channels, payloads = _payloads(pending)
                    told = {"channels": text_array(channels), "payloads": text_array(payloads)}
                    await execute(connection, load("hints_send"), told)
                except (psycopg.Error, OSError) as error:
                    if not failing:
                        logger.warning("hints cannot be sent, others will poll until they can: %s", brief(error))
                    failing = True
                    if connection is not None:
                        await connection.close()
                        connection = None
                    await asyncio.sleep(backoff.next())
                else:
                    if failing:
                        logger.info("hints are sent again")
                    failing = False
                    backoff.reset()
                if not self._pending:
                    self._idle.set()
        finally:
            if connection is not None:
                await connection.close()

    async def flush(self, timeout: float) -> bool:
        """Wait until what was asked for has been sent, for at most ``timeout`` seconds; returns whether it has."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


def _payloads(pending: dict[str, dict[UUID, None] | None]) -> tuple[list[str], list[str]]:
    channels, payloads = [], []
    for channel, ids in pending.items():
        for payload in _chunks(ids):
            channels.append(channel)
            payloads.append(payload)
    return channels, payloads


def _chunks(ids: dict[UUID, None] | None) -> Iterator[str]:
    if ids is None:
        yield ""
        return
    digits = [run_id.hex for run_id in ids]
    for start in range(0, len(digits), IDS_PER_PAYLOAD):
        yield ",".join(digits[start : start + IDS_PER_PAYLOAD])


async def _readable(connection: psycopg.AsyncConnection[Any], timeout: float) -> None:
    """Wait until the server has sent something, or ``timeout`` seconds.

    ``connection.notifies()`` would wake ten times a second and hand out a burst one by one.
    """
    loop = asyncio.get_running_loop()
    fd = connection.fileno()
    ready = loop.create_future()
    timer = loop.call_later(timeout, _resolve, ready)
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
        timer.cancel()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
