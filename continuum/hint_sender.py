"""What sends the hints of an application process: on whose time, how often, and what becomes of a lost connection.

Whoever asks for a hint sends it too if that needs no waiting: a few system calls, where waking a thread for it costs a
multiple and makes two threads want the interpreter. A daemon thread does what takes waiting. It opens the connection
for the first hint, sends what came too soon after the last round, sees to answers, and closes the connection when there
were no hints for a while; as long as there is one, the thread is there.
"""

from __future__ import annotations

import logging
import math
import selectors
import threading
import time
from typing import Any

import psycopg
from django.core import mail
from django.db import connections
from psycopg.pq import ExecStatus

from continuum.worker.connections import Backoff, connect_sync
from continuum.worker.wakes import IDS_PER_PAYLOAD

__all__ = ["Channels", "Sender", "database_key", "idle_seconds", "key_of", "merge"]

logger = logging.getLogger("continuum.hints")

# By channel, the ids of runs that have news, as digits; None instead means "look at all".
Channels = dict[str, dict[str, None] | None]

IDLE_SECONDS = 30.0
# The pause between two rounds bounds what hints cost the server and the workers. While a round comes soon after the one
# before, it doubles from FIRST_PAUSE_SECONDS to LONGEST_PAUSE_SECONDS: a process with less than some sixty hints a
# second does not meet it.
PAUSE_SECONDS = 0.001
SOON_SECONDS = 0.016
FIRST_PAUSE_SECONDS = 0.008
LONGEST_PAUSE_SECONDS = 0.1
# What surely fits into what the network takes without waiting, once the last round is answered.
MOST_POSTED_BYTES = 4096
# When to look again for an answer that keeps others waiting.
RETRY_SECONDS = 0.005
# And for one that nobody waits for.
ANSWER_SECONDS = 1.0
# A proxy may keep a connection that leads nowhere any more: after so long without an answer another one is tried.
GIVE_UP_SECONDS = 10.0
FLUSH_SECONDS = 0.001
_LOST = (psycopg.OperationalError, psycopg.InterfaceError)
# With more ids than this waiting for one channel, "look at all" says it shorter.
MOST_PENDING_IDS = 10_000


def database_key(alias: str) -> tuple[Any, ...]:
    """Return what tells the database behind ``alias`` apart: a test run points the alias somewhere else."""
    return key_of(connections[alias])


def key_of(connection: Any) -> tuple[Any, ...]:
    settings = connection.settings_dict
    return connection.alias, settings["NAME"], settings["HOST"], settings["PORT"], settings["USER"]


def idle_seconds() -> float:
    """Return for how long a connection without work is kept.

    Not at all in test runs (Django's set-up for tests, which runners and plugins all call, leaves ``mail.outbox``): the
    test database could not be dropped while somebody is connected to it.
    """
    return 0.0 if hasattr(mail, "outbox") else IDLE_SECONDS


def merge(channels: Channels, channel: str, ids: dict[str, None] | None) -> None:
    """Add a hint to those waiting; None instead of ids means "look at all"."""
    known = channels.setdefault(channel, {})
    if ids is None or known is None or len(known) + len(ids) > MOST_PENDING_IDS:
        channels[channel] = None
    else:
        known.update(ids)


class Pace:
    """How long to leave between two rounds of hints."""

    def __init__(self) -> None:
        self.pause = PAUSE_SECONDS
        self.sent_at = -math.inf

    def sent(self, now: float) -> float:
        """A round goes out at this moment of the monotonic clock; return the pause after it, in seconds.

        It grows as long as rounds follow upon each other, and one that is late in coming ends the burst.
        """
        gap, self.sent_at = now - self.sent_at, now
        if gap < max(SOON_SECONDS, 2 * self.pause):
            self.pause = min(max(2 * self.pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        else:
            self.pause = PAUSE_SECONDS
        return self.pause


class Sender:
    """Sends the hints for one database.

    Args:
        key: what ``database_key`` returns.
    """

    def __init__(self, key: tuple[Any, ...]) -> None:
        self._key = key
        self._alias = key[0]
        self._changed = threading.Condition()
        self._pending: Channels = {}
        self._unanswered: Channels = {}
        self._connection: psycopg.Connection[Any] | None = None
        self._thread: threading.Thread | None = None
        self._running = False
        self._working = False  # the thread waits for the server: the connection is its own for now
        self._closed = False
        self._looks_at = math.inf  # when the thread looks what there is to do
        self._used_at = -math.inf
        self._posted_at = -math.inf
        self._due = -math.inf  # when the next round may go out
        self._pace = Pace()
        self._failing = False
        self._backoff = Backoff(base=0.5, cap=30.0)
        self._muted_until = 0.0

    # For those who ask

    def add(self, channels: Channels) -> None:
        """Have hints sent. Neither waits nor raises."""
        with self._changed:
            now = time.monotonic()
            if self._closed or now < self._muted_until:
                return
            for channel, ids in channels.items():
                merge(self._pending, channel, ids)
            self._used_at = now
            if self._running:
                self._advance(now)
                return
            self._thread = threading.Thread(target=self._run, name=f"continuum-hints-{self._alias}", daemon=True)
            try:
                self._thread.start()
                self._running = True
            except RuntimeError:  # the interpreter is shutting down
                self._thread = None
                self._pending.clear()

    def goes_along(self) -> bool:
        """Tell whether a hint may go another way now, as it would make a round of its own; if so, it counts as one."""
        now = time.monotonic()
        if self._pending or now < self._due:  # in a burst nobody waits for the lock to hear that
            return False
        with self._changed:
            if self._closed or self._pending or self._working or now < self._due:
                return False
            self._went_out(now)
            return True

    def hurry(self) -> None:
        """Do not let what is pending, or comes next, wait for company: who asks waits for what comes of each hint."""
        with self._changed:
            self._due = min(self._due, self._pace.sent_at + PAUSE_SECONDS)
            if self._pending:
                self._advance(time.monotonic())

    def flush(self, timeout: float) -> bool:
        """Wait until the server has all hints, for at most ``timeout`` seconds; return whether it has."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._pending or self._unanswered or self._working:
                now = time.monotonic()
                if now >= deadline:
                    return False
                self._due = now
                self._advance(now)
                self._changed.wait(min(deadline - now, FLUSH_SECONDS))
                self._receive()
            return True

    def close(self) -> None:
        """Drop what is not sent yet, and have the thread close the connection and end."""
        with self._changed:
            self._closed = True
            self._pending, self._unanswered = {}, {}
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, for at most ``timeout`` seconds."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # Under the lock, and without waiting for anything

    def _advance(self, now: float) -> None:
        """Send what is pending if its time has come, and have the thread look when there is more to do."""
        if self._working:
            return  # the thread will look
        due = now >= self._due
        if self._pending and due and self._receive() and self._connection is not None:
            command = _command(self._pending)
            if len(command) <= MOST_POSTED_BYTES:
                self._post(command, now)
        if self._pending:
            self._look(now + RETRY_SECONDS if due and self._unanswered else self._due)
        elif now < self._due and self._pace.pause > PAUSE_SECONDS:
            self._look(self._due)  # in a burst there will be something by then
        elif self._unanswered:
            self._look(now + (ANSWER_SECONDS if idle_seconds() else RETRY_SECONDS))

    def _post(self, command: bytes, now: float) -> None:
        assert self._connection is not None
        try:
            _post(self._connection, command)
        except psycopg.Error:
            self._disconnect()  # idle for too long, or the server was restarted: the thread makes a new one
            return
        self._unanswered, self._pending = self._pending, {}
        self._posted_at = now
        self._went_out(now)

    def _went_out(self, now: float) -> None:
        self._due = now + self._pace.sent(now)

    def _receive(self) -> bool:
        """Take the answer to what was posted; return whether none is missing."""
        if self._unanswered and self._connection is not None:
            try:
                if _answered(self._connection):
                    self._unanswered = {}
                elif time.monotonic() - self._posted_at < GIVE_UP_SECONDS:
                    return False
                else:
                    self._disconnect()
            except psycopg.Error as error:
                self._disconnect()  # with the connection lost, the thread will send it again over another
                if not isinstance(error, _LOST):
                    self._failed(error)
        return True

    def _disconnect(self) -> None:
        """Close the connection; what nobody has confirmed is to be sent again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        for channel, ids in self._unanswered.items():
            merge(self._pending, channel, ids)
        self._unanswered = {}

    def _failed(self, error: Exception) -> None:
        said, self._failing = self._failing, True
        # Hints that are late are worth nothing: drop them, and do not try for a while.
        self._pending.clear()
        self._muted_until = time.monotonic() + self._backoff.next()
        if not said:
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning(
                "hints for database %r cannot be sent, workers will poll until they can: %s", self._alias, reason
            )

    def _look(self, at: float) -> None:
        if at < self._looks_at:
            self._looks_at = at
            self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            connection, pending = taken
            error: Exception | None = None
            try:
                connection = self._sent(connection, pending)
            except Exception as failure:  # whatever it is, a hint is not worth a thread that dies
                connection, error = None, failure
            with self._changed:
                self._working = False
                self._connection = connection
                self._went_out(time.monotonic())
                if error is not None:
                    self._failed(error)
                elif connection is not None:
                    self._failing, self._muted_until = False, 0.0
                    self._backoff.reset()
                self._changed.notify_all()

    def _next(self) -> tuple[psycopg.Connection[Any] | None, Channels] | None:
        """Wait until there is something that takes waiting for the server; None means that the thread is to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._looks_at = self._used_at + idle_seconds()
                if not self._closed:
                    self._receive()
                    self._advance(now)
                if self._closed or not (self._pending or self._unanswered or now < self._looks_at):
                    self._disconnect()
                    # In the same breath as finding nothing: whoever adds a hint from now on starts another thread.
                    self._running = False
                    return None
                if self._pending and not self._unanswered and now >= self._due:
                    # There is no connection, or it is too much for the network to take at once.
                    pending, self._pending = self._pending, {}
                    connection, self._connection = self._connection, None
                    self._working = True
                    return connection, pending
                self._changed.wait(max(0.0, self._looks_at - now))

    def _sent(self, connection: psycopg.Connection[Any] | None, pending: Channels) -> psycopg.Connection[Any] | None:
        """Send, and wait until that is done; return the connection to go on with."""
        command = _command(pending)
        if connection is not None:
            try:
                _execute(connection, command)
                return connection
            except Exception as error:
                connection.close()
                if not isinstance(error, _LOST):
                    raise
                # Idle for too long, or the server was restarted: a new one will do.
        if database_key(self._alias) != self._key:
            return None
        connection = connect_sync(self._alias, application_name="continuum hints")
        try:
            _execute(connection, command)
        except BaseException:
            connection.close()
            raise
        return connection


def _command(pending: Channels) -> bytes:
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


# Statements as they are, without parameters and a plan, take a tenth of the processor time.


def _execute(connection: psycopg.Connection[Any], command: bytes) -> None:
    """Send a command and wait for the answer, though not for ever."""
    connection.pgconn.nonblocking = 1
    _post(connection, command)
    deadline = time.monotonic() + GIVE_UP_SECONDS
    results: list[Any] = []
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE)
        while not _answered(connection, results):
            if (left := deadline - time.monotonic()) <= 0:
                raise psycopg.OperationalError("the server does not answer")
            if not connection.pgconn.flush():
                selector.modify(connection.fileno(), selectors.EVENT_READ)
            selector.select(left)
    for result in results:
        _check(connection, result)


def _post(connection: psycopg.Connection[Any], command: bytes) -> None:
    """Send a command without waiting for anything."""
    pgconn = connection.pgconn
    pgconn.consume_input()  # fails if the server has hung up meanwhile
    pgconn.send_query(command)
    pgconn.flush()


def _answered(connection: psycopg.Connection[Any], results: list[Any] | None = None) -> bool:
    """Return whether all of the answer to what was posted has arrived, and take it: into a list, or check it."""
    pgconn = connection.pgconn
    pgconn.flush()
    pgconn.consume_input()
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is None:
            return True
        if results is not None:
            results.append(result)
        else:
            _check(connection, result)
    return False


def _check(connection: psycopg.Connection[Any], result: Any) -> None:
    if result.status != ExecStatus.COMMAND_OK:
        error = psycopg.errors.error_from_result(result)
        raise psycopg.OperationalError(str(error)) if connection.closed else error
