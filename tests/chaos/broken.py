"""Workers that lack a part of their fence, or the limits of their queues, on purpose: chaos must notice."""

from __future__ import annotations

import asyncio
import os

from continuum.worker import recording, shared_queues, tasks, transactional
from continuum.worker.queues import Queues, RateLog
from continuum.worker.session import Session
from continuum.worker.sql import load
from tests.chaos.workflows import GATES

__all__ = ["PARTS", "break_on_purpose"]

PARTS = ("notice", "journal", "transactions", "limits")
LATE = 0.7
# In an ambush a worker is told to leave before it has noticed.
NEVER = 600.0


def break_on_purpose(part: str) -> None:
    """Take a part of the fence, or the limits, away, in this process.

    A worker that notices at once that it has lost its lease rarely needs its fence, so with each part it notices late.

    Args:
        part: ``journal``: it writes whoever owns the run; ``transactions``: so do attempts, whatever is on record;
            ``notice``: nothing more than that, which the rest of the fence must make up for; ``limits``: nobody
            counts what queues allow, and the fence is whole.
    """
    if part == "limits":
        _break_limits()
        return
    _notice_late()
    if part == "journal":
        _break_journal()
    elif part == "transactions":
        _break_transactions()


def _notice_late() -> None:
    lost = Session._on_lost

    def late(self: Session, reason: str) -> None:
        asyncio.get_running_loop().call_later(NEVER if GATES in os.environ else LATE, lost, self, reason)

    Session._on_lost = late


def _break_journal() -> None:
    lost = ("WHERE NOT EXISTS (SELECT 1 FROM lease) OR (", "WHERE false AND (")
    stale = (
        "WHERE r.id = u.run_id AND r.lease_token + 0 = u.token AND coalesce(r.owner_id, 0) = %(worker)s\n      AND",
        "WHERE r.id = u.run_id AND",
    )
    assert stale[0] in load("journal")

    def unfenced(name: str, without: frozenset[str] = frozenset()) -> str:
        sql = load(name, without)
        return _without(sql, *lost).replace(*stale) if name == "journal" else sql

    recording.load = unfenced


def _break_transactions() -> None:
    record, of_task = load("transactional_record"), load("transactional_record_task")
    fence = "WHERE known.result IS NULL AND (known.attempt <= EXCLUDED.attempt OR %(unfenced)s)"
    record = _without(record, fence, "")
    record = _without(
        record,
        "FROM continuum_runs r, lease\n    WHERE r.id = %(run_id)s AND r.lease_token + 0 = %(token)s "
        "AND coalesce(r.owner_id, 0) = lease.id",
        "FROM continuum_runs r\n    WHERE r.id = %(run_id)s",
    )
    texts = {"transactional_record": record, "transactional_record_task": of_task}
    transactional.load = lambda name: texts.get(name) or load(name)


def _break_limits() -> None:
    known = shared_queues.load
    none_run = known("queue_running").replace("SELECT count(*)", "SELECT 0 * count(*)")
    assert none_run != known("queue_running")
    shared_queues.load = lambda name: none_run if name == "queue_running" else known(name)
    assert tasks.Queues is Queues
    Queues.room = lambda self, queue, free: free
    RateLog.allowed = lambda self, now_us: 1_000


def _without(sql: str, guard: str, instead: str) -> str:
    assert guard in sql, f"the statement has changed; it lacks {guard!r}"
    return sql.replace(guard, instead)
