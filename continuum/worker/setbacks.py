"""Runs that cannot go on as they are: parked, ended, left alone for a while, or failed because their record is refused.

Each of them leaves its worker with a row that says why; none of them may hold up another run.
"""

from __future__ import annotations

import json
import logging

from continuum.core.execution import Outcome
from continuum.core.history import Event, EventType
from continuum.exceptions import ReplayDriftError
from continuum.worker import rows
from continuum.worker.clock import Clock
from continuum.worker.journal import Journal
from continuum.worker.live import Entry, LiveRun, Message

__all__ = ["park", "quarantine", "record_refusal"]

logger = logging.getLogger("continuum.worker")

# How long a run that broke the engine is left alone, in microseconds.
QUARANTINE_US = 30_000_000


def park(journal: Journal, clock: Clock, live: LiveRun, drift: ReplayDriftError) -> None:
    """History and code disagree: nothing is recorded, and the run waits for other code; or ends, if it is to stop."""
    logger.error("%s", drift)
    if live.asked_to_stop is None:
        journal.entry(live).update = rows.parked(live, drift)
    else:
        _cancel_without_code(journal, clock.now_us(), live, live.asked_to_stop, drift)


def _cancel_without_code(
    journal: Journal, now_us: int, live: LiveRun, request: Message, drift: ReplayDriftError
) -> None:
    entry = journal.entry(live)
    entry.remove(request)
    outcome = Outcome("cancelled", None, rows.cancelled_without_code(live, request.reason, drift))
    seq = live.recorded + 1
    entry.events = [
        Event(seq, EventType.CANCEL_REQUESTED, None, None, json.dumps({"reason": request.reason}), now_us),
        Event(seq + 1, outcome.event_type, None, None, outcome.event_data, now_us),
    ]
    entry.update = rows.ended(live, outcome, now_us)
    # What its code would have seen to.
    outbox = entry.send()
    outbox.cascade = request.reason
    outbox.clear_tasks = True
    outbox.report = True


def quarantine(journal: Journal, clock: Clock, live: LiveRun) -> None:
    """The engine itself failed on this run: log why, and let it be tried again later, from what is durable."""
    logger.exception("run %s: an unexpected error; the run is left alone for a while", live.id)
    journal.drop(live)
    journal.entry(live).update = rows.quarantined(clock.now_us() + QUARANTINE_US)


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
        instead.update = rows.quarantined(clock.now_us() + QUARANTINE_US)
    instead.last_resort = True
