"""Hearing that runs have ended: one listening connection a process and database, shared by all who wait.

The thread behind it is started by the first who waits and goes away when nobody has waited for a while. Its connection
is its own, never one of Django's or of a pool's. What it hears is a hint: whoever is woken looks at the database.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from continuum.conf import settings as continuum_settings
from continuum.hint_sender import database_key, idle_seconds
from continuum.worker.connections import Backoff, connect_sync, lends_sessions_sync
from continuum.worker.sql import load
from continuum.worker.wakes import DONE_CHANNEL

__all__ = ["Watch", "close_all", "watch"]

logger = logging.getLogger("continuum.waiting")

CLOSE_SECONDS = 5.0
# How long the server has to bring a hint back to a session that listens.
PROBE_SECONDS = 2.0
# Where listening cannot work, this is how often it is tried again.
RETRY_SECONDS = 30.0
_PROBE = "continuum_probe_"


def watch(alias: str, wake: Callable[[], None]) -> Watch:
    """Return a watch (a context manager) that calls ``wake`` when a run it was given may have ended.

    Args:
        alias: the database of the runs.
        wake: called from another thread; must be quick and must not raise.
    """
    if alias == continuum_settings.DATABASE and continuum_settings.LISTEN_DATABASE:
        alias = continuum_settings.LISTEN_DATABASE
    return Watch(_listener(alias), wake)


def close_all() -> None:
    """Close the listening connections, so that the databases can be dropped. Who still waits goes on by polling."""
    with _lock:
        listeners = list(_listeners.values())
        _listeners.clear()
    for listener in listeners:
        listener.close()
    for listener in listeners:
        listener.join(CLOSE_SECONDS)


class Watch:
    """An interest in the end of some runs."""

    def __init__(self, listener: _Listener, wake: Callable[[], None]) -> None:
        self._listener = listener
        self._wake = wake
        self._run_ids: set[UUID] = set()

    @property
    def listening(self) -> bool:
        """Whether hints arrive at present; if not, poll."""
        return self._listener.listening

    def add(self, run_id: UUID) -> bool:
        """Watch this run too; return False if it was watched already. To be called before its state is read."""
        if run_id in self._run_ids:
            return False
        self._run_ids.add(run_id)
        self._listener.add(run_id, self._wake)
        return True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        for run_id in self._run_ids:
            self._listener.remove(run_id, self._wake)


class _Listener:
    """The listening thread of one database."""

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.listening = False
        self._key = key
        self._alias = key[0]
        self._lock = threading.Lock()
        self._wakes: dict[str, list[Callable[[], None]]] = {}
        self._unused_since = 0.0
        self._thread: threading.Thread | None = None
        self._running = False
        self._closed = False
        self._proven = False
        self._heard_probe = ""
        # A byte through this pipe ends the thread's wait.
        self._read_end, self._write_end = os.pipe()

    def __del__(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)

    # For those who wait

    def add(self, run_id: UUID, wake: Callable[[], None]) -> None:
        with self._lock:
            self._wakes.setdefault(run_id.hex, []).append(wake)
            if self._running or self._closed:
                return
            self._thread = threading.Thread(target=self._run, name=f"continuum-waiting-{self._alias}", daemon=True)
            try:
                self._thread.start()
                self._running = True
            except RuntimeError:  # the interpreter is shutting down
                self._thread = None

    def remove(self, run_id: UUID, wake: Callable[[], None]) -> None:
        with self._lock:
            wakes = self._wakes[run_id.hex]
            wakes.remove(wake)
            if not wakes:
                del self._wakes[run_id.hex]
            self._unused_since = time.monotonic()
            if not self._wakes and not idle_seconds():
                os.write(self._write_end, b"x")

    def close(self) -> None:
        with self._lock:
            self._closed = True
        os.write(self._write_end, b"x")

    def join(self, timeout: float) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # The thread

    def _run(self) -> None:
        backoff = Backoff()
        said = ""
        while self._wanted():
            try:
                trouble = self._session(backoff)
                pause = RETRY_SECONDS
            except Exception as error:  # whatever it is: those who wait poll, and it is tried again
                reason = " ".join(str(error).split()) or type(error).__name__
                trouble, pause = f"the connection that listens for ended runs failed ({reason})", backoff.next()
            if trouble:
                self._set_listening(False)
                if trouble != said:
                    logger.warning("%s; polling until that changes", trouble)
                    said = trouble
                self._pause(pause)

    def _wanted(self) -> bool:
        """Tell whether to go on; once it has said no, the next who waits starts another thread."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return False  # somebody has waited since: there is another thread
            unused = not self._wakes and time.monotonic() - self._unused_since >= idle_seconds()
            self._running = not (self._closed or unused or database_key(self._alias) != self._key)
            if self._running:
                return True
            # In the same breath, so that the next who waits does not rely on what is about to be closed.
            listened, self.listening = self.listening, False
        if listened:
            self._wake(None)
        return False

    def _session(self, backoff: Backoff) -> str:
        """Listen until nobody waits any more, or the connection breaks; return a reason if nothing can be heard."""
        connection = connect_sync(self._alias, application_name="continuum waiting")
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(connection.fileno(), selectors.EVENT_READ)
                selector.register(self._read_end, selectors.EVENT_READ)
                if not self._proven and not self._probe(connection, selector):
                    return (
                        f"database {self._alias!r} does not deliver notifications (a transaction pooler?): name a "
                        'direct connection in CONTINUUM["LISTEN_DATABASE"] to hear at once of runs that have ended'
                    )
                self._proven = True
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(DONE_CHANNEL)))
                backoff.reset()
                self._set_listening(True)
                while self._wanted():
                    # Drained first: what came along with an answer does not make the socket readable again.
                    self._hear(connection)
                    selector.select(max(idle_seconds(), 1.0))
            return ""
        finally:
            connection.close()

    def _probe(self, connection: psycopg.Connection[Any], selector: selectors.BaseSelector) -> bool:
        """Send a hint from another session and see whether it arrives: behind some poolers LISTEN works in vain."""
        nonce = _PROBE + uuid.uuid4().hex
        channel = sql.Identifier(nonce)
        with connect_sync(self._alias, application_name="continuum waiting (probe)") as other:
            # It would be a session of the pooler's that listens, for ever: not before that is ruled out.
            if lends_sessions_sync(connection, other):
                return False
            connection.execute(sql.SQL("LISTEN {}").format(channel))
            other.execute(load("client_hints"), {"channels": [nonce], "payloads": [""]})
        deadline = time.monotonic() + PROBE_SECONDS
        while self._heard_probe != nonce and not self._closed and (left := deadline - time.monotonic()) > 0:
            selector.select(left)
            self._hear(connection)
        connection.execute(sql.SQL("UNLISTEN {}").format(channel))
        return self._heard_probe == nonce

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        """Take everything that has arrived, and wake whom it concerns."""
        pgconn = connection.pgconn
        pgconn.consume_input()
        while notify := pgconn.notifies():
            channel, payload = notify.relname.decode(), notify.extra.decode(errors="replace")
            if channel.startswith(_PROBE):
                self._heard_probe = channel
            elif not payload:
                self._wake(None)
            else:
                self._wake(payload.split(","))

    def _set_listening(self, listening: bool) -> None:
        if self.listening != listening:
            self.listening = listening
            # What ended in between was not heard; and whoever relied on hints must poll from now on.
            self._wake(None)

    def _wake(self, digits: list[str] | None) -> None:
        with self._lock:
            wakes = [wake for each in (self._wakes if digits is None else digits) for wake in self._wakes.get(each, ())]
        for wake in wakes:
            wake()

    def _pause(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._read_end, selectors.EVENT_READ)
            selector.select(seconds)


_lock = threading.Lock()
_listeners: dict[tuple[Any, ...], _Listener] = {}
_inherited: list[_Listener] = []


def _listener(alias: str) -> _Listener:
    key = database_key(alias)
    listener = _listeners.get(key)
    if listener is None:
        with _lock:
            listener = _listeners.get(key)
            if listener is None:
                listener = _listeners[key] = _Listener(key)
    return listener


def _forget_parents_listeners() -> None:
    """Begin anew in a forked child: threads are not inherited, and the connections are the parent's to close."""
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_listeners.values())
    _listeners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_listeners)
