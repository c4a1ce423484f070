"""Going on with other code than that which made the history: a clean replay is the proof, and an event says so."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from continuum.core.history import EventType

__all__ = ["adopt"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def adopt(execution: Any, version: int, version_hash: str, now_us: int) -> None:
    """Record that a run whose history has just replayed is its execution's code's from here on.

    The event comes before all that this code has done since, as it may have ended the run already. It does not move the
    run's clock: a replay walks past it, and so its place in time is that of the event before it.

    Args:
        execution: has lived through the whole history, and nothing of what followed has been taken yet.
        version, version_hash: of the code that had the run until now.
        now_us: microseconds since the epoch, for people.
    """
    definition = execution.definition
    data = {
        "from": version_hash,
        "to": definition.version_hash,
        "from_version": version,
        "to_version": definition.version,
        "at": (_EPOCH + timedelta(microseconds=now_us)).isoformat(),
    }
    event = execution.decide(EventType.VERSION_ADOPTED, None, None, json.dumps(data))
    journal = execution.journal
    # What a retry decides while it is taken up belongs to the record of it.
    resumed = [place for place, each in enumerate(journal, 1) if each.type == EventType.RUN_RESUMED]
    place = resumed[-1] if resumed else 0
    later = journal[place:-1]
    if later:
        event = event._replace(seq=later[0].seq, time_us=later[0].time_us)
        journal[place:] = [event, *(each._replace(seq=each.seq + 1) for each in later)]
