"""Runs in memory, and what happens to them one after the other on a virtual clock.

It plays everything a cluster does: it claims runs, carries out what they ask for, delivers messages, starts children
and successors. Nothing happens at the same time and nothing by itself, so that a test is the same every time.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from continuum.core.children import ChildStart, Successor
from continuum.core.commands import Command
from continuum.core.execution import Outcome
from continuum.core.history import Event, EventType
from continuum.core.identity import RunIdentity
from continuum.core.resuming import forked
from continuum.determinism import paranoid
from continuum.ids import derived
from continuum.testing.memory_attempts import Attempts
from continuum.testing.memory_runs import Letter, MemoryRun
from continuum.testing.mocks import Mocks
from continuum.testing.traces import Recorder
from continuum.testing.virtual_loop import outside_any_loop

__all__ = ["EPOCH_US", "World"]

#: When the clock begins: 2024-06-14T12:00:00Z.
EPOCH_US = 1_718_366_400_000_000

_TIME_IS_OVER = "the run's timeout is over"
# At one instant: what is under way goes on, then messages and ends of attempts, then timers, then time limits.
_HAPPENING, _TIMER, _LIMIT = 0, 1, 2


class World:
    """All that exists in one environment.

    Args:
        mocks: what stands in for activities and children.
        max_bytes: largest value, in bytes of JSON text.
    """

    def __init__(self, mocks: Mocks, max_bytes: int | None) -> None:
        self.mocks = mocks
        self.clock_us = EPOCH_US
        self.runs: dict[UUID, MemoryRun] = {}
        self.stepping = False
        self.tracing = False
        self._max_bytes = max_bytes
        self._queue: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._attempts = Attempts(self, max_bytes)

    # -- time ---------------------------------------------------------------------------------------------------

    def at(self, due_us: int, fn: Callable[..., None], *args: Any, rank: int = _HAPPENING) -> None:
        """Have ``fn(*args)`` called when the time has come."""
        heapq.heappush(self._queue, (due_us, rank, self._next(), fn, args))

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def pass_time(self, seconds: float) -> None:
        """Time has really passed."""
        self.clock_us += round(seconds * 1e6)

    def step(self, until_us: int | None = None) -> bool:
        """Let the next thing happen. Returns False when nothing can, or nothing by then."""
        self.stepping = True
        try:
            with outside_any_loop():
                return self._step(until_us)
        finally:
            self.stepping = False

    def _step(self, until_us: int | None) -> bool:
        self._attempts.run_until_quiet()
        loop_us = self._attempts.next_due_us
        due_us = self._queue[0][0] if self._queue else None
        if loop_us is not None and (due_us is None or (loop_us, _HAPPENING) <= self._queue[0][:2]):
            if until_us is not None and loop_us > until_us:
                return False
            self.clock_us = max(self.clock_us + (loop_us <= self.clock_us), loop_us)
            return True
        if due_us is None or (until_us is not None and due_us > until_us):
            return False
        _, _, _, fn, args = heapq.heappop(self._queue)
        self.clock_us = max(self.clock_us, due_us)
        fn(*args)
        return True

    # -- from outside -------------------------------------------------------------------------------------------

    def add(self, run: MemoryRun) -> None:
        """Take in a run that begins when its time has come."""
        if self.tracing:
            run.states = {}
        self.runs[run.id] = run
        self.at(max(run.begin_us, self.clock_us), self._begin, run)

    def tip(self, run: MemoryRun) -> MemoryRun:
        """Return the last run of a chain of continued ones."""
        while run.continued_to_run_id is not None:
            run = self.runs[run.continued_to_run_id]
        return run

    def send(self, run: MemoryRun, letter: Letter) -> None:
        """Put a message into a run's inbox."""
        run.mail.append(letter)
        self.at(self.clock_us, self._read_mail, run)

    def retry(self, run: MemoryRun) -> None:
        """Let a failed run go on from where it failed."""
        time_us = max(self.clock_us, run.records[-1].time_us if run.records else 0)
        run.records.append(Event(len(run.records) + 1, EventType.RUN_RETRIED, None, None, "{}", time_us))
        if run.deadline_us is not None and run.completed_us is not None:
            run.deadline_us += self.clock_us - run.completed_us
        run.outcome = run.completed_us = None
        run.retries += 1
        run.retried_as = self._next()
        run.mail = [letter for letter in run.mail if letter.kind == "signal"]
        if run.standing_in:
            self.at(self.clock_us, self._begin, run)
        else:
            self.at(self.clock_us, self._reopen, run)

    def fork(self, run: MemoryRun, before: str) -> tuple[MemoryRun, bool]:
        """Make a run that shares another's history before a command; returns it, and whether there is that command."""
        number = sum(other.forked_from_run_id == run.id for other in self.runs.values())
        id_ = self.new_id("fork", run.id, number)
        records, found = forked(run.records, run.identity, id_, before, self.clock_us)
        other = MemoryRun(
            definition=run.definition,
            identity=RunIdentity(id_, run.namespace, run.version, started_us=self.clock_us, depth=run.identity.depth),
            input_json=run.input_json,
            attributes=dict(run.attributes),
            correlation_id=run.correlation_id,
            priority=run.priority,
            forked_from_run_id=run.id,
            claimed_us=run.claimed_us,
            records=records,
        )
        return other, found

    def take_up(self, run: MemoryRun) -> None:
        """Take in a run that goes on from a history."""
        self.runs[run.id] = run
        self.at(self.clock_us, self._reopen, run)

    def crash(self) -> None:
        """Lose the process with all that is not durable, and take the runs up in another."""
        for run in list(self.runs.values()):
            if run.execution is not None and run.outcome is None:
                self._reopen(run)

    def new_id(self, *parts: Any) -> UUID:
        """Return an id that looks like that of a run and follows from these parts and the clock."""
        number = derived(*parts, self.clock_us).int
        milliseconds = self.clock_us // 1000
        return UUID(int=milliseconds << 80 | 7 << 76 | number & (0xFFF << 64) | 0b10 << 62 | number & (1 << 62) - 1)

    def close(self) -> None:
        """Give everything up."""
        for run in self.runs.values():
            self._give_up(run)
        self._attempts.close()
        self._queue.clear()

    # -- the life of a run --------------------------------------------------------------------------------------

    def _execution_of(self, run: MemoryRun) -> Recorder:
        made = paranoid.execution_class(Recorder)
        return made(run.definition, run.identity, run.input_json, max_bytes=self._max_bytes)  # type: ignore[return-value]

    def _begin(self, run: MemoryRun) -> None:
        if run.outcome is not None or run.execution is not None:
            return
        mock = self.mocks.get(run.workflow) if run.reply_to is not None else None
        if mock is not None:
            run.standing_in = True
            self._attempts.stand_in(run, mock, lambda result, error: self._stood_in(run, result, error))
            return
        run.claimed_us = self.clock_us
        execution = run.execution = self._execution_of(run)
        cancelled = None
        request = next((letter for letter in run.mail if letter.kind == "cancel"), None)
        if request is not None:
            run.mail.remove(request)
            cancelled = request.payload
        elif run.deadline_us is not None and run.deadline_us <= self.clock_us:
            cancelled = _TIME_IS_OVER
        execution.begin(self.clock_us, cancelled=cancelled)
        execution.replay()
        if run.deadline_us is not None:
            self.at(run.deadline_us, self._expire, run, run.deadline_us, rank=_LIMIT)
        self._hand_over(run)

    def _reopen(self, run: MemoryRun) -> None:
        self._give_up(run)
        execution = run.execution = self._execution_of(run)
        assert run.claimed_us is not None
        run.timer_us = None
        execution.begin(run.claimed_us, run.records)
        execution.replay()
        if run.deadline_us is not None:
            self.at(max(run.deadline_us, self.clock_us), self._expire, run, run.deadline_us, rank=_LIMIT)
        self._hand_over(run)

    def _give_up(self, run: MemoryRun) -> None:
        execution = run.execution
        if execution is not None:
            self._attempts.abandon_all(execution)
            run.under_way.clear()
            run.final_progress = execution.progress
            execution.close()
            run.execution = None

    def _read_mail(self, run: MemoryRun) -> None:
        if run.outcome is not None and run.continued_to_run_id is not None:
            # It was continued meanwhile: what is not an answer to its own commands goes along.
            mail, run.mail = run.mail, []
            for letter in mail:
                if letter.kind != "child":
                    self.send(self.tip(run), letter)
        elif run.outcome is None and run.execution is not None:
            self._hand_over(run)
        elif run.outcome is None and any(letter.kind == "cancel" for letter in run.mail):
            if run.standing_in:
                reason = next(letter.payload for letter in run.mail if letter.kind == "cancel")
                error = {"type": "CancelledError", "message": reason, "traceback": "", "details": None}
                self._end(run, Outcome("cancelled", None, error))
            else:
                self._begin(run)

    def _hand_over(self, run: MemoryRun) -> None:
        execution = run.execution
        assert execution is not None
        while run.mail and execution.outcome is None:
            letter = run.mail.pop(0)
            if letter.kind == "signal":
                execution.signal_received(letter.name or "", letter.payload, self.clock_us)
            elif letter.kind == "cancel":
                execution.cancel_requested(letter.payload, self.clock_us)
            else:
                execution.child_ended(letter.name or "", letter.payload, self.clock_us)
        self.advance(run)

    def advance(self, run: MemoryRun) -> None:
        """Record what a run wants recorded, and see to what it wants done."""
        execution = run.execution
        assert execution is not None
        journal, commands, abandoned, outcome, cancels = execution.take()
        run.records += journal
        if run.states is not None:
            run.states[len(run.records)] = execution.state()
        self._attempts.abandon(run, abandoned)
        for command in commands:
            if command.child is not None:
                self._start_child(run, command.child)
        if outcome is not None:
            self._end(run, outcome)
        self._cancel_children(run, cancels)
        if any(event.type == EventType.CANCEL_REQUESTED for event in journal):
            self._cascade(run, execution.cancel_reason or "")
        if outcome is None:
            self._attempts.start(run, [command for command in commands if command.child is None])
            timer = execution.next_timer()
            if timer is not None and timer.due_us is not None and timer.due_us != run.timer_us:
                run.timer_us = timer.due_us
                self.at(timer.due_us, self._fire, run, execution, timer.due_us, rank=_TIMER)

    def _fire(self, run: MemoryRun, execution: Recorder, due_us: int) -> None:
        if run.execution is not execution or run.timer_us != due_us:
            return
        run.timer_us = None
        while (command := execution.next_timer()) is not None and (command.due_us or 0) <= self.clock_us:
            if not execution.timer_fired(command, self.clock_us):
                break
        self.advance(run)

    def _expire(self, run: MemoryRun, deadline_us: int) -> None:
        if run.outcome is None and run.execution is not None and run.deadline_us == deadline_us:
            run.execution.cancel_requested(_TIME_IS_OVER, self.clock_us)
            self.advance(run)

    def _end(self, run: MemoryRun, outcome: Outcome) -> None:
        run.outcome = outcome
        run.completed_us = self.clock_us
        run.ended_as = self._next()
        self._give_up(run)
        if outcome.successor is not None:
            self._continue(run, outcome.successor)
        elif run.reply_to is not None:
            self._report(run)

    def _stood_in(self, run: MemoryRun, result: str | None, error: dict[str, Any] | None) -> None:
        self._end(run, Outcome("completed", result, None) if error is None else Outcome("failed", None, error))

    # -- its family ---------------------------------------------------------------------------------------------

    def _continue(self, run: MemoryRun, successor: Successor) -> None:
        identity = replace(run.identity, id=successor.id, seed=None, started_us=self.clock_us)
        identity = replace(identity, parent_run_id=run.parent_run_id, version=run.definition.version)
        run.continued_to_run_id = successor.id
        follower = MemoryRun(
            definition=run.definition,
            identity=identity,
            input_json=successor.input,
            attributes=dict(run.attributes),
            correlation_id=run.correlation_id,
            priority=run.priority,
            deadline_us=run.deadline_us,
            parent_run_id=run.parent_run_id,
            reply_to=run.reply_to,
            continued_from_run_id=run.id,
            mail=[Letter("signal", name, payload) for name, payload in successor.signals],
            deliveries=run.deliveries,
        )
        follower.mail += [letter for letter in run.mail if letter.kind != "child"]
        run.mail = []
        for child in self.runs.values():
            if child.parent_run_id == run.id and child.outcome is None:
                child.parent_run_id = follower.id
        self.add(follower)

    def _start_child(self, run: MemoryRun, child: ChildStart) -> None:
        there = self.runs.get(child.id)
        if there is not None:
            self._find_child(run, self.tip(there), child)
            return
        definition = child.definition
        identity = RunIdentity(
            child.id,
            child.namespace or run.namespace,
            definition.version,
            run.id,
            self.clock_us,
            depth=run.identity.depth + 1,
        )
        self.add(
            MemoryRun(
                definition=definition,
                identity=identity,
                input_json=child.input,
                attributes=dict(run.attributes) if child.attributes is None else json.loads(child.attributes),
                correlation_id=run.correlation_id,
                priority=run.priority,
                parent_run_id=run.id,
                reply_to=child.reply_to,
            )
        )

    def _find_child(self, run: MemoryRun, tip: MemoryRun, child: ChildStart) -> None:
        """See to a child that was started before, and of whose end its parent's history knows nothing."""
        if tip.outcome is None:
            return
        # Not by the clock: a run may fail and be retried at one instant of virtual time.
        if tip.outcome.state == "failed" and child.retried_us is not None and tip.ended_as < run.retried_as:
            self.retry(tip)
        else:
            self._report(tip)

    def _report(self, run: MemoryRun) -> None:
        parent = self.runs.get(run.parent_run_id) if run.parent_run_id is not None else None
        letter = run.letter_about_its_end()
        if parent is not None and parent.state not in ("completed", "cancelled") and letter not in parent.mail:
            self.send(parent, letter)

    def _cancel_children(self, run: MemoryRun, commands: list[Command]) -> None:
        for command in commands:
            child = self.runs.get(command.child.id)
            if child is not None:
                self._cancel(self.tip(child), command.cancelled or "")

    def _cascade(self, run: MemoryRun, reason: str) -> None:
        for child in list(self.runs.values()):
            if child.parent_run_id == run.id:
                self._cancel(child, reason)

    def _cancel(self, run: MemoryRun, reason: str) -> None:
        if run.outcome is None and not any(letter.kind == "cancel" for letter in run.mail):
            self.send(run, Letter("cancel", None, reason))
