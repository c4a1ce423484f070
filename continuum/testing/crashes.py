"""Proving that workflows survive the loss of their worker: from every place where it may happen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from continuum.core.definitions import WorkflowDefinition
from continuum.core.history import TERMINAL, Event, EventType
from continuum.core.resuming import effective
from continuum.exceptions import ReplayDriftError
from continuum.testing.memory_runs import MemoryRun
from continuum.testing.redelivery import redeliver
from continuum.testing.traces import Asked, Recorder, State

if TYPE_CHECKING:
    from continuum.testing.environment import Environment

__all__ = ["CrashReport", "check_crashes", "scenario_of"]

_RETRIES = (EventType.RUN_RETRIED, EventType.RUN_RESUMED)


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What was tried.

    Attributes:
        runs: the runs, with children and successors.
        crashes: how many places in their histories were tried.
    """

    runs: list[MemoryRun]
    crashes: int


def scenario_of(
    env: Environment, flow: Any, args: tuple[Any, ...], signals: Any, options: dict[str, Any]
) -> Callable[[], Any]:
    """Return what makes the runs that are to be checked."""
    if not isinstance(flow, WorkflowDefinition | str) and callable(flow):
        if args or signals or options:
            raise TypeError("a scenario is given the environment alone: it starts the workflow, and sends signals")
        return lambda: flow(env)
    pairs = list(signals.items() if isinstance(signals, Mapping) else signals)

    def scenario() -> None:
        run = env.start(flow, *args, **options)
        for name, payload in pairs:
            env.signal(run, name, payload)
        env.wait_run(run)
        env.run_until_idle()

    return scenario


def check_crashes(runs: Iterable[MemoryRun]) -> CrashReport:
    """Take runs up from every place in their histories.

    Raises:
        AssertionError: one of them goes another way.
    """
    checked = list(runs)
    return CrashReport(checked, sum(_check(run) for run in checked))


def _check(run: MemoryRun) -> int:
    if run.standing_in or not run.states:
        return 0
    history = run.records
    # Of one that was retried, what came before is lived through again with what failed left out.
    since = max((event.seq for event in history if event.type in _RETRIES), default=0)
    boundaries = [length for length in sorted(run.states) if length >= since]
    for length in boundaries:
        _crash(run, length, boundaries)
    return len(boundaries)


def _crash(run: MemoryRun, length: int, boundaries: list[int]) -> None:
    history, states = run.records, run.states
    assert states is not None
    assert run.claimed_us is not None
    where = _where(run, length)
    execution = _Rerun(run, history)
    try:
        try:
            execution.begin(run.claimed_us, history[:length])
            execution.replay()
        except ReplayDriftError as drift:
            raise AssertionError(f"{where}, its history could not be replayed: {drift}") from None
        execution.take()
        _compare(where, states[length], execution.state())
        for event in history[length:]:
            if execution.seq >= event.seq or event.type in TERMINAL:
                continue
            try:
                redeliver(execution, event)
            except AssertionError:
                waits = "; ".join(map(str, execution.pending.values())) or "nothing"
                raise AssertionError(
                    f"{where}, it went another way:\n"
                    f"  without the crash:  {_shown(event)}\n"
                    f"  with the crash:     it waits for {waits}"
                ) from None
            made = execution.take().journal
            _compare_events(where, history[made[0].seq - 1 : made[-1].seq] if made else [], made)
            if execution.seq in states and execution.seq in boundaries:
                _compare(where, states[execution.seq], execution.state())
        _compare(where, states[max(states)], execution.state())
    finally:
        execution.close()


class _Rerun(Recorder):
    """An execution that goes the way of another: what ``side_effect()`` gave there it gives here."""

    def __init__(self, run: MemoryRun, history: list[Event]) -> None:
        decided = [event for event in effective(history) if event.type == EventType.SIDE_EFFECT]
        self._decided = {event.command_id: event.data for event in decided}
        super().__init__(run.definition, run.identity, run.input_json)

    def decide(self, type_: str, command_id: str | None, name: str | None, data: str) -> Event:
        if type_ == EventType.SIDE_EFFECT:
            data = self._decided.get(command_id, data)
        return super().decide(type_, command_id, name, data)


def _compare(where: str, live: State, again: State) -> None:
    if live == again:
        return
    for one, other in zip_longest(live.asked, again.asked):
        if one != other:
            _differ(where, "asked for", one and _asked(one), other and _asked(other))
    for what in ("progress", "outcome", "waiting_on", "pending", "time_us"):
        one, other = getattr(live, what), getattr(again, what)
        if one != other:
            _differ(where, _WORDS[what], one, other)


def _asked(asked: Asked) -> str:
    return f"{asked.id} {asked.kind} {asked.name or ''} {asked.args}"


_WORDS = {
    "progress": "published as progress",
    "outcome": "ended as",
    "waiting_on": "waited for",
    "pending": "waited for",
    "time_us": "took the time for",
}


def _compare_events(where: str, live: list[Event], again: list[Event]) -> None:
    for one, other in zip_longest(live, again):
        if one != other and (one is None or other is None or _told(one) != _told(other)):
            _differ(where, "recorded", one and _shown(one), other and _shown(other))


def _told(event: Event) -> Any:
    data = json.loads(event.data)
    if isinstance(data.get("error"), dict):
        data["error"]["traceback"] = ""
    return event._replace(data=json.dumps(data))


def _differ(where: str, what: str, live: Any, again: Any) -> None:
    raise AssertionError(
        f"{where}, it {what} something else:\n"
        f"  without the crash:  {'nothing' if live is None else live}\n"
        f"  with the crash:     {'nothing' if again is None else again}\n"
        "Workflow code may depend on nothing but its arguments, the results of what it awaits, and now(), uuid4(), "
        "random() and side_effect() of continuum."
    )


def _where(run: MemoryRun, length: int) -> str:
    at = f"after event {_shown(run.records[length - 1])}" if length else "before its first event"
    return f"{run} does not survive a crash: killed {at}"


def _shown(event: Event) -> str:
    data = event.data if len(event.data) <= 200 else f"{event.data[:200]}…"
    parts = (event.seq, event.type, event.command_id, event.name, data)
    return " ".join(str(part) for part in parts if part is not None)
