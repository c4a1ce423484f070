"""Runs that cannot go on as they are: parked, ended, given up, left alone, or failed because their record is refused.

Each of them leaves its worker with a row that says why; none of them may hold up another run.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from continuum.conf import settings as continuum_settings
from continuum.core.execution import Outcome
from continuum.core.failures import describe_exception
from continuum.core.history import Event, EventType
from continuum.core.outcomes import failure_of
from continuum.exceptions import NonDeterminismError, PoisonRunError, ReplayDriftError, WorkflowDeadlockError
from continuum.worker import rows
from continuum.worker.adoption import NoCodeError, UnloadedWorkflow
from continuum.worker.clock import Clock
from continuum.worker.journal import Journal
from continuum.worker.live import Entry, LiveRun
from continuum.worker.loaded import token

__all__ = ["TIME_IS_OVER", "give_up", "park", "quarantine", "record_refusal", "see_to", "set_aside"]

logger = logging.getLogger("continuum.worker")

# How long a run that broke the engine is left alone, in microseconds.
QUARANTINE_US = 30_000_000
TIME_IS_OVER = "the run's timeout is over"

# Versions whose drift this process has reported in full: of thousands of runs that drift alike, one is enough to read.
_reported: set[tuple[str, str]] = set()


def see_to(journal: Journal, clock: Clock, live: LiveRun, error: Exception) -> None:
    """Do what an error calls for that a run has met with in the engine; the caller is in its except clause."""
    if isinstance(error, ReplayDriftError | NonDeterminismError | NoCodeError):
        park(journal, clock, live, error)
    elif isinstance(error, PoisonRunError):
        described = {"type": "PoisonRunError", "message": str(error), "traceback": ""}
        give_up(journal, clock, live, described | {"details": {"recoveries": error.recoveries}})
    elif isinstance(error, WorkflowDeadlockError):
        set_aside(journal, clock, live, error)
    else:
        quarantine(journal, clock, live, error)


def set_aside(journal: Journal, clock: Clock, live: LiveRun, error: WorkflowDeadlockError) -> None:
    """The code does not let go in the middle of a replay, where it once did: the run is tried again, not for ever.

    This may be the doing of other code, or of a slow machine, so nothing is recorded at first. It counts like the death
    of a worker: after ``MAX_RECOVERIES`` in a row the run fails. Where code does so that has not adopted the run yet,
    the run waits for other code.
    """
    if live.adopts is not None:
        park(journal, clock, live, error)
        return
    described = failure_of(error).error or {}
    recoveries = live.recoveries + 1
    if recoveries >= continuum_settings.MAX_RECOVERIES:
        give_up(journal, clock, live, described)
        return
    logger.error("run %s: interrupted while it was replayed; it is left alone for a while", live.id)
    journal.drop(live)
    until_us = clock.now_us() + QUARANTINE_US
    journal.entry(live).update = rows.quarantined(live, until_us, described, recoveries=recoveries)


def give_up(journal: Journal, clock: Clock, live: LiveRun, error: dict[str, Any]) -> None:
    """The run ends as failed where its history ends, without its code being asked. Its children go on."""
    logger.error("run %s has failed: %s", live.id, error["message"])
    journal.drop(live)
    outcome = Outcome("failed", None, error)
    now_us = clock.now_us()
    entry = journal.entry(live)
    entry.events = [Event(live.recorded + 1, outcome.event_type, None, None, outcome.event_data, now_us)]
    # How often is left to be seen; a retry starts from zero.
    entry.update = rows.ended(live, outcome, now_us)._replace(recoveries=None)
    outbox = entry.send()
    outbox.clear_tasks = True
    outbox.report = True


def park(journal: Journal, clock: Clock, live: LiveRun, why: Exception) -> None:
    """History and code disagree, or the code is not here: nothing is recorded, and the run waits for other code.

    Or it ends, if it is to stop: by request, or as its time is over. A run that was told so before is about to clean
    up: its time limit has done what it can.
    """
    _report(live, why)
    now_us = clock.now_us()
    told = live.execution.cancel_reason is not None
    told = told or any(event.type == EventType.CANCEL_REQUESTED for event in live.execution.events)
    until_us = None if told else live.deadline_us
    if live.asked_to_stop is not None:
        _cancel_without_code(journal, now_us, live, live.asked_to_stop.reason, why)
    elif until_us is not None and until_us <= now_us and live.replaying:
        _cancel_without_code(journal, now_us, live, TIME_IS_OVER, why)
    else:
        journal.drop(live)
        entry = journal.entry(live)
        entry.update = rows.parked(live, why, until_us)
        if not isinstance(live.definition, UnloadedWorkflow):
            tried = token(live.definition.version, live.definition.version_hash)
            # What code that is not repeatable comes to is not said by its hash: each worker that starts gives it a try.
            entry.send().tried = f"{tried}<{journal.worker_id}" if isinstance(why, NonDeterminismError) else tried


def _report(live: LiveRun, why: Exception) -> None:
    kind = live.definition.name, live.definition.version_hash
    if isinstance(why, NonDeterminismError):
        logger.error("%s", why)
    elif not isinstance(why, ReplayDriftError):
        logger.warning("run %s cannot go on here: %s", live.id, why)
    elif kind not in _reported:
        _reported.add(kind)
        logger.error("%s", why)
    else:
        logger.error("run %s of %s cannot go on either: it drifts at command %s", live.id, kind[0], why.position)


def _cancel_without_code(journal: Journal, now_us: int, live: LiveRun, reason: str, why: Exception) -> None:
    journal.drop(live)
    entry = journal.entry(live)
    if live.asked_to_stop is not None:
        entry.remove(live.asked_to_stop)
    outcome = Outcome("cancelled", None, rows.cancelled_without_code(live, reason, why))
    seq = live.recorded + 1
    entry.events = [
        Event(seq, EventType.CANCEL_REQUESTED, None, None, json.dumps({"reason": reason}), now_us),
        Event(seq + 1, outcome.event_type, None, None, outcome.event_data, now_us),
    ]
    entry.update = rows.ended(live, outcome, now_us)
    # What its code would have seen to.
    outbox = entry.send()
    outbox.cascade = reason
    outbox.clear_tasks = True
    outbox.report = True


def quarantine(journal: Journal, clock: Clock, live: LiveRun, error: Exception) -> None:
    """The engine itself failed on this run: log why, and let it be tried again later, from what is durable."""
    logger.exception("run %s: an unexpected error; the run is left alone for a while", live.id)
    journal.drop(live)
    until_us = clock.now_us() + QUARANTINE_US
    journal.entry(live).update = rows.quarantined(live, until_us, describe_exception(error))


def record_refusal(journal: Journal, clock: Clock, live: LiveRun, entry: Entry, error: Exception) -> None:
    """PostgreSQL refuses what the run wants recorded: have the run end as failed, in place of what was refused."""
    unwritten = [*entry.events, *(live.open_entry.events if live.open_entry is not None else ())]
    journal.drop(live)
    instead = journal.entry(live)
    if unwritten or entry.outbox is not None:
        # What is sent may be refused although nothing is to be journaled with it: a child, a task.
        seq = unwritten[0].seq if unwritten else live.execution.seq + 1
        time_us = entry.events[0].time_us if entry.events else clock.now_us()
        failure = Event(seq, EventType.RUN_FAILED, None, None, '{"type":"JournalError"}', time_us)
        instead.events = [failure]
        instead.update = rows.refused(live, failure, error)
        outbox = instead.send()
        outbox.clear_tasks = True
        outbox.report = True
    else:
        until_us = clock.now_us() + QUARANTINE_US
        instead.update = rows.quarantined(live, until_us, describe_exception(error))
    instead.last_resort = True
