"""An in-memory driver: plays the worker for one run, with a virtual clock and a scheduler that says what happens next.

It carries out what a run asks for (activities, timers), delivers signals and cancel requests, and keeps what a worker
would journal. Nothing happens twice at once and nothing happens by itself, so that a test can put any two occurrences
in either order, crash the run between any two of them, and compare live runs with replays.
"""

from __future__ import annotations

import asyncio
import json
from asyncio import _get_running_loop
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from continuum import values
from continuum.core.activity_context import ActivityInfo, current_attempt
from continuum.core.children import ChildStart
from continuum.core.commands import Command
from continuum.core.definitions import WorkflowDefinition
from continuum.core.failures import describe_exception
from continuum.core.history import TERMINAL, Event, EventType
from continuum.core.identity import RunIdentity
from continuum.core.outcomes import Outcome
from continuum.core.resuming import effective, forked
from continuum.exceptions import NonRetryableError, RetryAfterError
from continuum.testing import traces
from continuum.testing.redelivery import redeliver
from continuum.testing.traces import State

RUN_ID = UUID("0190163d-8694-739b-aea5-966c26f8ad91")
#: When runs begin: 2024-06-14T12:00:00Z.
EPOCH_US = 1_718_366_400_000_000
#: How long a step takes on the virtual clock.
STEP_US = 1_000


# -- what a run was seen to do ----------------------------------------------------------------------------------


_living: set[Recorder] = set()


def close_all() -> None:
    """Release every run that still lives, so that none is found by the garbage collector later on."""
    for execution in list(_living):
        execution.close()


class Recorder(traces.Recorder):
    """An execution that keeps a trace, and is released at the end of its test."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _living.add(self)

    def close(self) -> None:
        super().close()
        _living.discard(self)


def note(value: Any) -> Any:
    """Called by workflow code in tests: put a value into the run's trace, and return it."""
    _get_running_loop().execution.notes.append(value)  # type: ignore[union-attr]
    return value


# -- what may happen next ---------------------------------------------------------------------------------------


class Occurrence(NamedTuple):
    """Something that could happen to a run next.

    Attributes:
        kind: ``attempt`` (an activity's attempt ends), ``child`` (a child ends), ``timer``, ``message``.
        key: what tells it from others of its kind: the command's id, or the message's number.
        due_us: the earliest instant it can happen.
        subject: the command or the message.
    """

    kind: str
    key: str
    due_us: int
    subject: Any


class Message(NamedTuple):
    """A signal or a cancel request on its way to a run."""

    number: int
    kind: str
    name: str
    payload: Any
    due_us: int


Scheduler = Callable[[list[Occurrence]], Occurrence]


def in_order(occurrences: list[Occurrence]) -> Occurrence:
    """The scheduler of a quiet day: what is due first, activities before messages before timers, oldest first."""
    rank = {"attempt": 0, "child": 0, "message": 1, "timer": 2}
    return min(occurrences, key=lambda o: (o.due_us, rank[o.kind]))


def newest_first(occurrences: list[Occurrence]) -> Occurrence:
    """The opposite: of all that could happen, what was asked for last."""
    return occurrences[-1]


def shuffled(pick: Callable[[int], int]) -> Scheduler:
    """A scheduler that lets ``pick(n)`` choose among ``n`` occurrences."""
    return lambda occurrences: occurrences[pick(len(occurrences))]


def scripted(keys: Iterable[str]) -> Scheduler:
    """A scheduler that follows the keys of occurrences, such as ``"0:1"``; for the choices of an earlier run."""
    script = deque(keys)

    def choose(occurrences: list[Occurrence]) -> Occurrence:
        wanted = script.popleft()
        return next(o for o in occurrences if o.key == wanted)

    return choose


# -- the driver -------------------------------------------------------------------------------------------------


@dataclass
class Driver:
    """Drives one run.

    Args:
        definition: the workflow.
        arguments: its arguments, as Python values.
        scheduler: picks what happens next.
        mocks: activity name → function that stands in for it.
        perform: does an activity's work instead of the function: called with the command, returns or raises.
        max_bytes: as for an execution.
    """

    definition: WorkflowDefinition
    arguments: Sequence[Any] = ()
    scheduler: Scheduler = in_order
    mocks: dict[str, Callable[..., Any]] = field(default_factory=dict)
    perform: Callable[[Command], Any] | None = None
    max_bytes: int | None = None
    run: RunIdentity = field(default_factory=lambda: RunIdentity(RUN_ID, started_us=EPOCH_US - 5_000_000))

    def __post_init__(self) -> None:
        self.input = self.definition.encode_arguments(tuple(self.arguments), {})
        self.clock_us = EPOCH_US
        self.history: list[Event] = []
        self.states: dict[int, State] = {}  # by number of events durable
        self.choices: list[str] = []
        self.calls: Counter[tuple[str, int]] = Counter()  # (command id, attempt) → how often its body ran
        self.outstanding: dict[str, Command] = {}
        self.abandoned: list[str] = []
        self.children: dict[UUID, ChildStart] = {}  # started ones, by run id
        self.cancelled: dict[UUID, str | None] = {}  # why children were cancelled
        self.ended: dict[UUID, tuple[str, int]] = {}  # what children have come to, and told, and when; they do so once
        self.taken_up = 0  # how many events there were when the run was last retried or forked
        self.messages: list[Message] = []
        self._sent = 0
        self.execution: Recorder = None  # type: ignore[assignment]
        self.outcome: Outcome | None = None

    # -- life of a run --

    def open(self, *, cancelled: str | None = None) -> Driver:
        """Bring the run to life from its history, as a claim does."""
        self.execution = Recorder(self.definition, self.run, self.input, max_bytes=self.max_bytes)
        self.outstanding = {}
        self.execution.begin(EPOCH_US, self.history, cancelled=cancelled)
        assert self.execution.replay()
        self._take()
        return self

    def crash(self) -> None:
        """Lose the run's process and take it up in another: what is not in the history never happened."""
        self.execution.close()
        self.open()

    def close(self) -> None:
        self.execution.close()

    def retry(self, *, definition: WorkflowDefinition | None = None) -> Driver:
        """Retry the run, which has failed; perhaps with other code."""
        assert self.outcome is not None
        assert self.outcome.state == "failed", self.outcome
        self.execution.close()
        self.clock_us += STEP_US
        self.history.append(Event(len(self.history) + 1, EventType.RUN_RETRIED, None, None, "{}", self.clock_us))
        self.taken_up, self.states, self.outcome = len(self.history), {}, None
        self.definition = definition or self.definition
        return self.open()

    def fork(self, before: str, *, number: int = 1) -> Driver:
        """Return the driver of a fork, which shares the history before a command."""
        self.clock_us += STEP_US
        run = replace(self.run, id=uuid5(self.run.id, f"fork {number}"), parent_run_id=None, started_us=self.clock_us)
        other = Driver(self.definition, self.arguments, self.scheduler, self.mocks, self.perform, self.max_bytes, run)
        other.clock_us = self.clock_us
        other.history, _ = forked(self.history, self.run, run.id, before, self.clock_us)
        other.taken_up = len(other.history)
        return other.open()

    def _take(self) -> None:
        journal, commands, abandoned, outcome, cancels = self.execution.take()
        self.history += journal
        for command in commands:
            if command.kind == "child":
                self.children.setdefault(command.child.id, command.child)
                state, when_us = self.ended.get(command.child.id, ("", 0))
                if state == "failed" and when_us < (command.child.retried_us or 0):
                    del self.ended[command.child.id]  # it is retried along with its parent
        for command in cancels:
            self.cancelled.setdefault(command.child.id, command.cancelled)
            self.outstanding[command.id] = command
        for command in commands:
            self.outstanding[command.id] = command
        for command in abandoned:
            self.abandoned.append(command.id)
        self.outstanding = {id_: c for id_, c in self.outstanding.items() if id_ in self.execution.pending}
        self.outcome = outcome
        self.states[len(self.history)] = self.execution.state()

    # -- from outside --

    def signal(self, name: str, payload: Any = None, *, after: float = 0.0) -> Driver:
        """Send a signal; it can arrive ``after`` seconds from now at the earliest."""
        return self._send("signal", name, payload, after)

    def cancel(self, reason: str = "", *, after: float = 0.0) -> Driver:
        return self._send("cancel", reason, None, after)

    def _send(self, kind: str, name: str, payload: Any, after: float) -> Driver:
        self._sent += 1
        self.messages.append(Message(self._sent, kind, name, payload, self.clock_us + round(after * 1e6)))
        return self

    # -- going on --

    def occurrences(self) -> list[Occurrence]:
        """All that could happen next, oldest first: activities, then the next message, then the next timer."""
        possible = [
            Occurrence(
                "child" if command.kind == "child" else "attempt",
                id_,
                max(self.clock_us, command.not_before_us or 0),
                command,
            )
            for id_, command in self.outstanding.items()
            if command.child is None or command.child.id not in self.ended
        ]
        if self.messages:
            message = min(self.messages, key=lambda m: (m.due_us, m.number))
            possible.append(Occurrence("message", f"m{message.number}", max(self.clock_us, message.due_us), message))
        timer = self.execution.next_timer()
        if timer is not None:
            possible.append(Occurrence("timer", timer.id, max(self.clock_us, timer.due_us or 0), timer))
        return possible

    def step(self) -> bool:
        """Let one thing happen. Returns False when the run has ended or nothing can."""
        if self.outcome is not None:
            return False
        possible = self.occurrences()
        if not possible:
            return False
        chosen = self.scheduler(possible)
        self.choices.append(chosen.key)
        self.clock_us = max(self.clock_us, chosen.due_us) + STEP_US
        getattr(self, f"_{chosen.kind}")(chosen.subject)
        self._take()
        return True

    def go(self, limit: int = 100_000) -> Driver:
        """Go on until the run has ended or waits for what nobody sends."""
        if self.execution is None:
            self.open()
        for _ in range(limit):
            if not self.step():
                return self
        raise AssertionError(f"the run has not come to rest after {limit} steps")

    def _message(self, message: Message) -> None:
        self.messages.remove(message)
        if message.kind == "signal":
            self.execution.signal_received(message.name, values.encode(message.payload), self.clock_us)
        else:
            self.execution.cancel_requested(message.name, self.clock_us)

    def _child(self, command: Command) -> None:
        """A child ends: as its stand-in says, or as a run of its workflow does, which is driven to its end here."""
        child = command.child
        told: dict[str, Any] = {"child": str(child.id), "state": "completed", "result": None, "error": None}
        stand_in = self.mocks.get(command.name or "")
        if child.id in self.cancelled:
            error = {"type": "CancelledError", "message": self.cancelled[child.id]}
            told |= {"state": "cancelled", "error": error}
        elif stand_in is not None:
            args, kwargs = command.definition.decode_arguments(child.input)
            try:
                told["result"] = json.loads(values.encode(stand_in(*args, **kwargs)))
            except Exception as exc:
                told |= {"state": "failed", "error": describe_exception(exc)}
        else:
            args, _ = command.definition.decode_arguments(child.input)
            identity = replace(self.run, id=child.id, parent_run_id=self.run.id, depth=self.run.depth + 1)
            run = Driver(command.definition, args, mocks=self.mocks, perform=self.perform, run=identity).open().go()
            assert run.outcome is not None
            result = None if run.outcome.result is None else json.loads(run.outcome.result)
            told |= {"state": run.outcome.state, "result": result, "error": run.outcome.error}
            run.close()
        self.ended[child.id] = told["state"], self.clock_us
        assert self.execution.child_ended(child.reply_to, json.dumps(told), self.clock_us)

    def _timer(self, command: Command) -> None:
        assert self.execution.timer_fired(command, self.clock_us)

    def _attempt(self, command: Command) -> None:
        started_us = self.clock_us - STEP_US
        self.calls[command.id, command.attempt] += 1
        failure: Exception | None = None
        try:
            result = values.encode(self._perform(command), command.definition.returns, path="result")
        except Exception as exc:
            failure = exc  # told outside this block, or it would become the context of what the workflow raises
        if failure is None:
            assert self.execution.activity_completed(command, result, started_us, self.clock_us)
            return
        next_us = self._next_attempt_us(command, failure)
        error = describe_exception(failure)
        if next_us is None:
            assert self.execution.activity_failed(command, error, started_us, self.clock_us)
        else:
            assert self.execution.activity_retried(command, error, started_us, self.clock_us, next_us)

    def _perform(self, command: Command) -> Any:
        if self.perform is not None:
            return self.perform(command)
        args, kwargs = command.definition.decode_arguments(command.args)
        info = ActivityInfo(self.run.id, command.name or "", command.attempt)
        token = current_attempt.set(SimpleNamespace(info=lambda: info))
        try:
            result = self.mocks.get(command.name or "", command.definition.fn)(*args, **kwargs)
            return asyncio.run(result) if asyncio.iscoroutine(result) else result
        finally:
            current_attempt.reset(token)

    def _next_attempt_us(self, command: Command, exc: Exception) -> int | None:
        retry = command.options.retry
        if command.attempt >= retry.max_attempts or isinstance(exc, NonRetryableError) or not retry.allows(exc):
            return None
        delay = exc.delay if isinstance(exc, RetryAfterError) else retry.delay(command.attempt)
        return self.clock_us + round(delay * 1e6)

    # -- what came of it --

    @property
    def result(self) -> Any:
        """The value a completed run returned."""
        assert self.outcome is not None, f"the run has not ended: it waits for {self.execution.waiting_on()}"
        assert self.outcome.state == "completed", self.outcome
        return values.decode(self.outcome.result or "null", self.definition.returns)

    @property
    def error(self) -> dict[str, Any]:
        assert self.outcome is not None
        assert self.outcome.error is not None
        return self.outcome.error

    @property
    def notes(self) -> list[Any]:
        return self.execution.notes

    @property
    def types(self) -> list[str]:
        """The types of the events so far."""
        return [event.type for event in self.history]

    @property
    def asked(self) -> list[str]:
        """The activities asked for so far, as ``"name[args]"``."""
        return [f"{a.name}{a.args}" for a in self.execution.asked if a.kind == "activity"]


def drive(definition: WorkflowDefinition, *arguments: Any, **options: Any) -> Driver:
    """Run a workflow until it ends or waits for what nobody sends."""
    return Driver(definition, arguments, **options).open().go()


# -- replay -----------------------------------------------------------------------------------------------------


def replay(
    driver: Driver, history: Sequence[Event], *, definition: Any = None, arguments: str | None = None
) -> Recorder:
    """Replay a history, against other code or arguments where these are given."""
    execution = Recorder(
        definition or driver.definition,
        driver.run,
        driver.input if arguments is None else arguments,
        max_bytes=driver.max_bytes,
    )
    execution.begin(EPOCH_US, history)
    assert execution.replay()
    return execution


def assert_sound(history: Sequence[Event]) -> None:
    """A history has no gaps, time does not fall, and nothing follows its one end."""
    assert [event.seq for event in history] == list(range(1, len(history) + 1))
    assert all(a.time_us <= b.time_us for a, b in pairwise(history))
    followed = [after.type for event, after in pairwise(history) if event.type in TERMINAL]
    assert set(followed) <= {EventType.RUN_RETRIED}
    counting = effective(history)
    assert sum(event.type in TERMINAL for event in counting) == (len(history) > 0 and history[-1].type in TERMINAL)
    answered = [e.command_id for e in counting if e.command_id and e.type != EventType.ACTIVITY_RETRIED]
    assert len(answered) == len(set(answered)), "a command was answered twice"


def assert_replays(driver: Driver) -> None:
    """A run replays from every prefix of its history to where it stood live, and goes on from there as it did.

    Of one that was retried or forked, from every prefix since.
    """
    history = driver.history
    assert_sound(history)
    boundaries = sorted(driver.states)
    for length in range(driver.taken_up, len(history) + 1):
        if driver.taken_up < length < boundaries[0] and history[driver.taken_up - 1].type == EventType.RUN_RETRIED:
            continue  # how a retry is taken up is one commit, whatever it decides
        # A commit holds all that one occurrence led to. A prefix that ends inside one is made whole by the replay,
        # which decides again what the code had decided.
        boundary = next(b for b in boundaries if b >= length)
        if length == 0 and history and "before_start" in history[0].data:
            continue
        execution = replay(driver, history[:length])
        step = execution.take()
        assert step.journal == history[length:boundary]
        live = driver.states[boundary]
        assert execution.state() == live
        wanted = {(id_, args) for id_, kind, _, args, _, _ in live.pending if kind in ("activity", "child")}
        assert {(command.id, command.args) for command in step.commands if not command.answered} == wanted
        assert all(command.detached for command in step.commands if command.answered)
        rest = list(history[boundary:])
        for event in rest:
            if execution.seq < event.seq:
                redeliver(execution, event)
        assert execution.take().journal == rest
        assert execution.state() == driver.states[len(history)]
        execution.close()
        assert execution.take().journal == []
