"""Histories that were taken up again: of runs that failed and were retried, and of runs forked from others.

A retry never deletes a record. It appends ``run_retried``; whoever claims the run next lives through the history once
more without what failed, takes of it what still fits, and records in ``run_resumed`` what it has left out. From then on
the history without these records is what replays, as strictly as any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from continuum.core.history import DECISIONS, MARKS, TERMINAL, WALKED_PAST, Event, EventType, types_of
from continuum.core.identity import RunIdentity
from continuum.exceptions import ReplayDriftError

if TYPE_CHECKING:
    from continuum.core.execution import Execution

__all__ = [
    "Retry",
    "effective",
    "forked",
    "identities",
    "last_retried_us",
    "live_through_again",
    "marks_at_the_end",
    "prepare",
    "resume",
]

_TAKEN_UP = frozenset({EventType.RUN_RETRIED, EventType.RUN_RESUMED})
_CHILD_ENDINGS = frozenset({EventType.CHILD_COMPLETED, EventType.CHILD_FAILED})
_ENDINGS = _CHILD_ENDINGS | {
    EventType.ACTIVITY_COMPLETED,
    EventType.ACTIVITY_FAILED,
    EventType.ACTIVITY_RETRIED,
    EventType.SIDE_EFFECT,
    EventType.TIMER_FIRED,
}


@dataclass(slots=True)
class Retry:
    """A retry that is about to be taken up.

    Attributes:
        events: the whole history.
        began_us: when the run began.
        again: commands whose outcomes are withheld: those that failed the run, and those that were undone after that.
        given_up: commands whose children the failed run had cancelled.
        dropped: the events left out.
        undone: commands that were undone by what is left out.
        ended: commands of children whose outcomes are left out, and whether these are to be started anew. A child that
            failed is retried instead: whoever starts it finds it failed.
        failed: the children that are to be retried, by command: workflow, arguments as the journal has them, run id.
        kept: commands of children whose outcomes still count.
        signals: signals that nobody waits for yet on the new way: they are received again, after the history.
        at: the event that the code lives through.
    """

    events: list[Event]
    began_us: int
    again: frozenset[str] = frozenset()
    given_up: list[str] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    undone: set[str] = field(default_factory=set)
    ended: dict[str, bool] = field(default_factory=dict)
    failed: dict[str, list[Any]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    signals: list[tuple[str, str]] = field(default_factory=list)
    at: int = 0
    _deferred: set[str] = field(default_factory=set)

    def withholds(self, event: Event) -> bool:
        """Whether an event is left out whatever the code asks for."""
        return event.type in TERMINAL or (event.type in _ENDINGS and event.command_id in self.again)

    def passes_over(self, run: Execution, event: Event) -> bool:
        """Whether an event is left out although the code might take it."""
        if event.type == EventType.SIGNAL_RECEIVED:
            return event.name in self._deferred  # signals of one name stay in order
        # The failed run had the child cancelled, and this one has not.
        return (
            event.type == EventType.CHILD_FAILED
            and event.command_id in self.given_up
            and event.command_id not in run.asks.given_up
            and json.loads(event.data)["state"] == "cancelled"
        )

    def drop(self, event: Event) -> None:
        """Leave an event out."""
        self.dropped.append(event.seq)
        data = json.loads(event.data)
        if event.type == EventType.SIGNAL_RECEIVED:
            self._deferred.add(event.name or "")
            self.signals.append((event.name or "", json.dumps(data["payload"])))
            return
        if event.type in _CHILD_ENDINGS and event.command_id is not None:
            self.ended[event.command_id] = anew = data["state"] != "failed" or event.command_id not in self.again
            if not anew:
                self.failed[event.command_id] = [event.name, data["args"], data["child"]]
        if event.type in _ENDINGS and data.get("undoes") is not None:
            self.undone.add(data["undoes"])

    def placed(self, data: str) -> str:
        """Return the data of a decision, and where it belongs: it is journaled after what the code lives through."""
        return json.dumps({**json.loads(data), "after": self.at})

    def record(self, run: Execution) -> str:
        """Return the data of the event that records it, as JSON text."""
        renewed = [id_ for id_, anew in self.ended.items() if anew]
        given_up = (id_ for id_ in self.given_up if id_ not in run.asks.given_up and id_ not in self.kept)
        renewed += [id_ for id_ in given_up if id_ not in self.ended]
        record: dict[str, Any] = {"dropped": self.dropped}
        if renewed:
            record["renewed"] = renewed
        # The id of a child tells when it was asked for, and these will be asked for later than they were.
        if later := {id_: child for id_, child in self.failed.items() if id_ not in run.pending}:
            record["again"] = later
        return json.dumps(record)


def last_retried_us(events: list[Event]) -> int | None:
    """Return when the run was retried last, or None."""
    return next((event.time_us for event in reversed(events) if event.type == EventType.RUN_RETRIED), None)


def effective(events: Iterable[Event]) -> list[Event]:
    """Return the events that count: without those that a retry has left out, and without the requests to retry."""
    kept: list[Event] = []
    retried = 0
    events = list(events)
    # What a fork has copied is without them already, and numbered anew.
    forked = max((event.seq for event in events if event.type == EventType.RUN_FORKED), default=0)
    for event in events:
        if event.type == EventType.RUN_RETRIED:
            retried = event.seq
        elif event.type == EventType.RUN_RESUMED and event.seq > forked:
            dropped = set(json.loads(event.data)["dropped"])
            kept = _in_place([each for each in kept if each.seq not in dropped], retried)
        if event.type != EventType.RUN_RETRIED:
            kept.append(event)
    return kept


def _in_place(events: list[Event], retried: int) -> list[Event]:
    """Put what the code decided while a retry was taken up where in its life it did so."""
    ordered = [event for event in events if event.seq < retried]
    for decision in events[len(ordered) :]:
        after = json.loads(decision.data)["after"]
        place = next((index for index, event in enumerate(ordered, 1) if event.seq == after), 0)
        time_us = ordered[max(place - 1, 0)].time_us if ordered else decision.time_us
        while place < len(ordered) and ordered[place].type in DECISIONS:
            place += 1
        ordered.insert(place, decision._replace(time_us=time_us))
    return ordered


def prepare(
    events: Iterable[Event], began_us: int, undone: frozenset[str] = frozenset()
) -> tuple[list[Event], Retry | None]:
    """Return the events to live through, and the retry to be taken up after them, if there is one.

    Args:
        events: the whole history.
        began_us: when the run began.
        undone: commands known to have been undone because of the failure.
    """
    events = list(events)
    if types_of(events).isdisjoint(_TAKEN_UP):
        return events, None
    kept = effective(events)
    if next(event.type for event in reversed(events) if event.type in _TAKEN_UP) == EventType.RUN_RESUMED:
        return kept, None
    failures = [json.loads(event.data) for event in kept if event.type == EventType.RUN_FAILED]
    retry = Retry(events, began_us, undone.union(*(failure.get("failed", ()) for failure in failures)))
    retry.given_up = [id_ for failure in failures for id_ in failure.get("cancelled", ())]
    rest = []
    for event in kept:
        if retry.withholds(event):
            retry.drop(event)
        else:
            rest.append(event)
    return rest, retry


def live_through_again(run: Execution, retry: Retry, event: Event) -> None:
    """Take of the history of a retried run what still fits, now that what failed is to run again."""
    if not retry.passes_over(run, event):
        time_us, before = run.loop.time_us, retry.at
        retry.at = event.seq
        try:
            run.apply(event)
        except ReplayDriftError:
            if run.drift is not None:
                raise
            run.loop.time_us, retry.at = time_us, before  # for the code it never was any later
        else:
            if event.type in _CHILD_ENDINGS and event.command_id is not None:
                retry.kept.add(event.command_id)
            return
    retry.drop(event)


def resume(run: Execution, retry: Retry) -> None:
    """Record what a retry has left out, and go on from there."""
    event = run.decide(EventType.RUN_RESUMED, None, None, retry.record(run))
    run.apply(event)
    outcome = run.outcome
    if outcome is not None:
        if outcome.successor is not None:
            kept = (*outcome.successor.signals, *retry.signals)
            run.outcome = outcome = outcome._replace(successor=outcome.successor._replace(signals=kept))
        run.decide(outcome.event_type, None, None, outcome.event_data)
    for name, payload in retry.signals:
        run.signal_received(name, payload, run.loop.time_us)


def identities(own: RunIdentity, events: Iterable[Event]) -> list[RunIdentity]:
    """Return who the code believes to be: first, and after each ``run_forked``.

    Up to the fork a history is that of another run: its code has seen that run's id, start and randomness.
    """
    found = [_source(own, json.loads(event.data)) for event in events if event.type == EventType.RUN_FORKED]
    return [*found, own]


def _source(own: RunIdentity, data: dict[str, Any]) -> RunIdentity:
    parent = data.get("parent")
    return replace(
        own,
        id=UUID(data["from"]),
        seed=None,
        started_us=data["started"],
        parent_run_id=None if parent is None else UUID(parent),
    )


def marks_at_the_end(events: Iterable[Event]) -> int:
    """Count the forks and adoptions that nothing but decisions follows.

    A fork may lie in the middle of what the code did at once, between two decisions: the second is made anew.
    """
    count = 0
    for event in reversed(list(events)):
        if event.type in MARKS:
            count += 1
        elif event.type not in WALKED_PAST:
            break
    return count


def forked(
    events: Iterable[Event], source: RunIdentity, new_id: UUID, before: str, now_us: int
) -> tuple[list[Event], bool]:
    """Return the history of a fork.

    Args:
        events: the whole history of the source.
        source: whose it is.
        new_id: the run id of the fork.
        before: the command before which the histories part.
        now_us: microseconds since the epoch.

    Returns:
        tuple: the history, and whether the source's holds an event of that command; if not, all of it is shared.
    """
    shared = [event for event in effective(events) if event.type not in TERMINAL]
    cut = next((index for index, event in enumerate(shared) if event.command_id == before), None)
    shared = shared[:cut]
    parent = source.parent_run_id
    data = {"run": str(new_id), "from": str(source.id), "before": before, "started": source.started_us}
    data["parent"] = None if parent is None else str(parent)
    time_us = max(now_us, shared[-1].time_us) if shared else now_us
    shared.append(Event(0, EventType.RUN_FORKED, None, None, json.dumps(data), time_us))
    return [event._replace(seq=seq) for seq, event in enumerate(shared, 1)], cut is not None
