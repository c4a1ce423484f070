"""Hints from application processes to workers: sent after the commit, many in one statement.

A hint only makes a worker look sooner than at its next poll, so sending one never makes the caller wait, never raises,
and never happens inside a transaction that has written something (a NOTIFY holds a cluster-wide lock until its
transaction is on disk): it has a connection of its own, one for each database and process. The first hint is sent at
once; those that come soon after it share the next round, and in a burst a round is a while in coming (see
``continuum.hint_sender``). One on its own goes along with the statement it speaks of, where that can be: see
``continuum.along``.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Any
from uuid import UUID

from django.db import connections, transaction

from continuum.hint_sender import Channels, Sender, database_key, key_of, merge
from continuum.worker.wakes import MAIL_CHANNEL, READY_CHANNEL, worker_channel

__all__ = ["close_all", "flush", "goes_along", "hurry", "is_fresh", "note_sent", "send_ready", "send_run"]

EXIT_SECONDS = 1.0
CLOSE_SECONDS = 5.0
# A worker takes longer to hear of something and to have written what comes of it.
FRESH_SECONDS = 0.001
# By this many others at once a note may be lost, which costs whoever waits for that run one look.
MOST_NOTED = 256


def send_ready(alias: str) -> bool:
    """Tell the workers, once the current transaction on ``alias`` is committed, that there is a run to claim.

    Returns:
        Whether that is now.
    """
    return _send(alias, READY_CHANNEL, None)


def send_run(alias: str, run_id: UUID, owner_id: int | None) -> bool:
    """Tell the owner of a run, or all workers if it has none, that there is news for it: after the commit as well."""
    return _send(alias, MAIL_CHANNEL if owner_id is None else worker_channel(owner_id), run_id)


def goes_along(alias: str) -> bool:
    """Tell whether a hint may go along with a statement outside transactions; if so, it counts as sent.

    See ``continuum.along``.
    """
    return _sender(connections[alias]).goes_along()


def note_sent(run_id: UUID) -> None:
    """This process has just started a run, or sent it something, and told the workers: see ``is_fresh``."""
    if len(_sent_at) >= MOST_NOTED:
        _sent_at.clear()
    _sent_at[run_id] = time.monotonic()


def is_fresh(run_id: UUID) -> bool:
    """Tell, once, whether what this process has last sent to a run cannot have come to anything yet."""
    sent_at = _sent_at.pop(run_id, None)
    return sent_at is not None and time.monotonic() - sent_at < FRESH_SECONDS


def hurry(alias: str) -> None:
    """Send what waits for company at once: the caller goes on to wait for what comes of it."""
    sender = _senders.get(database_key(alias))
    if sender is not None:
        sender.hurry()


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


class _Batch:
    """The hints of one transaction: gathered while it runs, handed over when it is committed."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.channels: Channels = {}

    def __call__(self) -> None:
        self.sender.add(self.channels)


def _send(alias: str, channel: str, run_id: UUID | None) -> bool:
    connection = connections[alias]
    ids = None if run_id is None else {run_id.hex: None}
    if not connection.in_atomic_block:
        # Outside Django's own transactions nobody tells when the caller commits: the workers' next poll serves.
        if not connection.get_autocommit():
            return False
        _sender(connection).add({channel: ids})
        return True
    batch = _open_batch(connection)
    if batch is None:
        batch = _Batch(_sender(connection))
        transaction.on_commit(batch, using=alias, robust=True)
    merge(batch.channels, channel, ids)
    return False


def _open_batch(connection: Any) -> _Batch | None:
    """Return the batch this transaction has, if it shares the fate of what is written now.

    Only a hook that comes last and belongs to the same savepoints does: another is dropped or kept on its own.
    """
    if not connection.run_on_commit:
        return None
    savepoints, hook, *_ = connection.run_on_commit[-1]
    return hook if isinstance(hook, _Batch) and savepoints == set(connection.savepoint_ids) else None


_sent_at: dict[UUID, float] = {}
_lock = threading.Lock()
_senders: dict[tuple[Any, ...], Sender] = {}
_inherited: list[Sender] = []


def _sender(connection: Any) -> Sender:
    key = key_of(connection)
    sender = _senders.get(key)
    if sender is None:
        with _lock:
            sender = _senders.setdefault(key, Sender(key))
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
