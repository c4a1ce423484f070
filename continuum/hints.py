"""Hints from application processes to workers: sent after the commit, in the background, many in one statement.

A hint only makes a worker look sooner than at its next poll, so sending one never delays the caller, never raises, and
never happens inside a transaction that has written something (a NOTIFY holds a cluster-wide lock until its transaction
is on disk). Each database has one daemon thread with a connection of its own. It starts with the first hint and goes
away when there were none for a while. The first hint is sent at once; those that arrive while it is under way go
together in the next.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from typing import Any
from uuid import UUID

import psycopg
from django.core import mail
from django.db import connections, transaction
from psycopg.pq import ExecStatus

from continuum.worker.connections import Backoff, connect_sync
from continuum.worker.wakes import IDS_PER_PAYLOAD, MAIL_CHANNEL, READY_CHANNEL, worker_channel

__all__ = ["close_all", "database_key", "flush", "idle_seconds", "send_ready", "send_run"]

logger = logging.getLogger("continuum.hints")

IDLE_SECONDS = 30.0
EXIT_SECONDS = 1.0
CLOSE_SECONDS = 5.0
# The pause after each round bounds what a burst of hints costs the server, and this process's interpreter lock. It
# doubles while hints are asked for at more than BUSY_A_SECOND, over the last RATE_SECONDS or so; one on its own, even
# every few hundredths of a second, does not meet it.
PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 0.032
BUSY_A_SECOND = 100.0
RATE_SECONDS = 0.2
# With more ids than this waiting for one channel, "look at all" says it shorter.
MOST_PENDING_IDS = 10_000


def send_ready(alias: str) -> None:
    """Tell the workers, once the current transaction on ``alias`` is committed, that there is a run to claim."""
    _send(alias, READY_CHANNEL, None)


def send_run(alias: str, run_id: UUID, owner_id: int | None) -> None:
    """Tell the owner of a run, or all workers if it has none, that there is news for it: after the commit as well."""
    _send(alias, MAIL_CHANNEL if owner_id is None else worker_channel(owner_id), run_id)


def flush(timeout: float) -> bool:
    """Wait until the hints asked for are sent, for at most ``timeout`` seconds; return whether they are."""
    deadline = time.monotonic() + timeout
    return all(sender.flush(deadline - time.monotonic()) for sender in list(_senders.values()))


def close_all() -> None:
    """Drop the hints not sent yet and close the connections, so that the databases can be dropped."""
    with _lock:
        senders = list(_senders.values())
        _senders.clear()
    for sender in senders:
        sender.close()
    for sender in senders:
        sender.join(CLOSE_SECONDS)


def database_key(alias: str) -> tuple[Any, ...]:
    """Return what tells the database behind ``alias`` apart: a test run points the alias somewhere else."""
    settings = connections[alias].settings_dict
    return alias, settings["NAME"], settings["HOST"], settings["PORT"], settings["USER"]


def idle_seconds() -> float:
    """Return for how long a connection without work is kept.

    Not at all in test runs (Django's set-up for tests, which runners and plugins all call, leaves ``mail.outbox``): the
    test database could not be dropped while somebody is connected to it.
    """
    return 0.0 if hasattr(mail, "outbox") else IDLE_SECONDS


class _Batch:
    """The hints of one transaction: gathered while it runs, handed over when it is committed."""

    def __init__(self, sender: _Sender) -> None:
        self.sender = sender
        self.channels: dict[str, dict[str, None] | None] = {}

    def __call__(self) -> None:
        for channel, ids in self.channels.items():
            self.sender.add(channel, ids)


def _send(alias: str, channel: str, run_id: UUID | None) -> None:
    connection = connections[alias]
    ids = None if run_id is None else {run_id.hex: None}
    if not connection.in_atomic_block:
        # Outside Django's own transactions nobody tells when the caller commits: the workers' next poll serves.
        if connection.get_autocommit():
            _sender(alias).add(channel, ids)
        return
    batch = _open_batch(connection)
    if batch is None:
        batch = _Batch(_sender(alias))
        transaction.on_commit(batch, using=alias, robust=True)
    _merge(batch.channels, channel, ids)


def _open_batch(connection: Any) -> _Batch | None:
    """Return the batch this transaction has, if it shares the fate of what is written now.

    Only a hook that comes last and belongs to the same savepoints does: another is dropped or kept on its own.
    """
    if not connection.run_on_commit:
        return None
    savepoints, hook, *_ = connection.run_on_commit[-1]
    return hook if isinstance(hook, _Batch) and savepoints == set(connection.savepoint_ids) else None


def _merge(channels: dict[str, dict[str, None] | None], channel: str, ids: dict[str, None] | None) -> None:
    """Add a hint to those waiting; None instead of ids means "look at all"."""
    known = channels.setdefault(channel, {})
    if ids is None or known is None or len(known) + len(ids) > MOST_PENDING_IDS:
        channels[channel] = None
    else:
        known.update(ids)


class _Pace:
    """How long to pause after each round of hints.

    Attributes:
        added: hints asked for since the last round.
        pause: seconds.
    """

    def __init__(self) -> None:
        self.added = 0
        self.pause = PAUSE_SECONDS
        self._rate = 0.0  # a second; what is longer ago counts for less
        self._rounded_at = float("-inf")

    def round(self, now: float) -> None:
        """A round of hints goes out at this moment of the monotonic clock."""
        seconds = max(now - self._rounded_at, 1e-6)
        kept = math.exp(-seconds / RATE_SECONDS)
        self._rate = self._rate * kept + self.added / seconds * (1 - kept)
        self.pause = min(self.pause * 2, LONGEST_PAUSE_SECONDS) if self._rate > BUSY_A_SECOND else PAUSE_SECONDS
        self.added, self._rounded_at = 0, now


class _Sender:
    """The background thread of one database."""

    def __init__(self, key: tuple[Any, ...]) -> None:
        self._key = key
        self._alias = key[0]
        self._changed = threading.Condition()
        self._pending: dict[str, dict[str, None] | None] = {}
        self._thread: threading.Thread | None = None
        self._running = False
        self._sending = False
        self._closed = False
        self._failing = False
        self._backoff = Backoff(base=0.5, cap=30.0)
        self._muted_until = 0.0
        self._pace = _Pace()

    def add(self, channel: str, ids: dict[str, None] | None) -> None:
        with self._changed:
            if self._closed or (self._muted_until and time.monotonic() < self._muted_until):
                return
            _merge(self._pending, channel, ids)
            self._pace.added += 1
            if self._running:
                self._changed.notify_all()
                return
            self._thread = threading.Thread(target=self._run, name=f"continuum-hints-{self._alias}", daemon=True)
            try:
                self._thread.start()
                self._running = True
            except RuntimeError:  # the interpreter is shutting down
                self._thread = None
                self._pending.clear()

    def flush(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending and not self._sending, max(0.0, timeout))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._pending.clear()
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        try:
            while pending := self._next():
                try:
                    connection = self._sent(connection, pending)
                except Exception as error:  # whatever it is, a hint is not worth a thread that dies
                    self._failed(error)
                    if connection is not None:
                        connection.close()
                        connection = None
                finally:
                    with self._changed:
                        self._sending = False
                        self._changed.notify_all()
                time.sleep(self._pace.pause)
        finally:
            if connection is not None:
                connection.close()

    def _next(self) -> dict[str, dict[str, None] | None]:
        """Wait for hints and take them; nothing means that the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed, idle_seconds())
            pending, self._pending = self._pending, {}
            self._pace.round(time.monotonic())
            self._sending = bool(pending)
            if not pending:
                # In the same breath as finding nothing: whoever adds a hint from now on starts another thread.
                self._running = False
            return pending

    def _sent(
        self, connection: psycopg.Connection[Any] | None, pending: dict[str, dict[str, None] | None]
    ) -> psycopg.Connection[Any] | None:
        """Send; return the connection to go on with."""
        command = _command(pending)
        if connection is not None:
            try:
                _execute(connection, command)
                return connection
            except (psycopg.OperationalError, psycopg.InterfaceError):
                connection.close()  # idle for too long, or the server was restarted: a new one will do
        if database_key(self._alias) != self._key:
            return None
        connection = connect_sync(self._alias, application_name="continuum hints")
        try:
            _execute(connection, command)
        except BaseException:
            connection.close()
            raise
        with self._changed:
            self._failing, self._muted_until = False, 0.0
            self._backoff.reset()
        return connection

    def _failed(self, error: Exception) -> None:
        with self._changed:
            said, self._failing = self._failing, True
            # Hints that are late are worth nothing: drop them, and do not try for a while.
            self._pending.clear()
            self._muted_until = time.monotonic() + self._backoff.next()
        if not said:
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning(
                "hints for database %r cannot be sent, workers will poll until they can: %s", self._alias, reason
            )


def _command(pending: dict[str, dict[str, None] | None]) -> bytes:
    """Return what sends hints: one transaction that writes nothing else.

    Its commit need not wait for the disk. That is set for this transaction only, since behind a transaction pooler a
    setting of the session would stay behind for others. Channels and payloads are our own: nothing is to be escaped.
    """
    notifies = []
    for channel, ids in pending.items():
        digits = list(ids or ())
        # A payload must stay below 8,000 bytes.
        parts = [",".join(digits[i : i + IDS_PER_PAYLOAD]) for i in range(0, len(digits), IDS_PER_PAYLOAD)] or [""]
        notifies += [f"NOTIFY {channel}, '{part}'" for part in parts]
    return "; ".join(("BEGIN", "SET LOCAL synchronous_commit TO off", *notifies, "COMMIT")).encode()


def _execute(connection: psycopg.Connection[Any], command: bytes) -> None:
    """Send statements as they are: without parameters and a plan that takes a tenth of the processor time."""
    result = connection.pgconn.exec_(command)
    if result.status != ExecStatus.COMMAND_OK:
        error = psycopg.errors.error_from_result(result)
        raise psycopg.OperationalError(str(error)) if connection.closed else error


_lock = threading.Lock()
_senders: dict[tuple[Any, ...], _Sender] = {}
_inherited: list[_Sender] = []


def _sender(alias: str) -> _Sender:
    key = database_key(alias)
    sender = _senders.get(key)
    if sender is None:
        with _lock:
            sender = _senders.setdefault(key, _Sender(key))
    return sender


def _forget_parents_senders() -> None:
    """Begin anew in a forked child: threads are not inherited, and the connections are the parent's to close."""
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_senders.values())  # kept, since collecting one would say goodbye over the parent's socket
    _senders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_senders)
atexit.register(flush, EXIT_SECONDS)
