"""One run in memory: drives a workflow function from its history, and records what comes in.

Live and replay are the same code: every event, fresh or read back, goes through :meth:`Execution._apply`. Whoever
drives an execution tells it what happened (``activity_completed``, ``timer_fired``, …), and then takes the step it
made: the events to journal, the commands to carry out once these are durable, and the outcome.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from typing import Any

from continuum import values
from continuum.core import delivery, resuming
from continuum.core.asks import Asks
from continuum.core.children import Successor
from continuum.core.commands import Command
from continuum.core.drift import asked, told
from continuum.core.history import DECISIONS, TERMINAL, Event, EventType, fingerprint
from continuum.core.identity import RunIdentity
from continuum.core.loop import DeterministicLoop
from continuum.core.outcomes import Outcome, Step, continuation_of, failure_of, outcome_of
from continuum.core.sagas import Sagas
from continuum.exceptions import ReplayDriftError, WorkflowDeadlockError
from continuum.ids import derived_child

__all__ = ["Execution", "Outcome", "RunIdentity", "Step"]


class Execution:
    """A run of a workflow.

    Args:
        definition: the workflow.
        run: the run's identity.
        arguments: JSON text of its input.
        max_bytes: largest value it may journal, in bytes of JSON text; None for no limit.
    """

    def __init__(self, definition: Any, run: RunIdentity, arguments: str, *, max_bytes: int | None = None) -> None:
        self.definition = definition
        self.id = run.id
        self.run = run
        self.arguments = arguments
        self.max_bytes = max_bytes
        self.loop = DeterministicLoop(self)
        self.seq = 0
        self.outcome: Outcome | None = None
        self.asks = Asks(self.loop, definition, max_bytes)
        self.pending = self.asks.pending
        self.issue, self.abandon = self.asks.issue, self.asks.abandon
        self.start_timer, self.next_timer = self.asks.start_timer, self.asks.next_timer
        self.progress: str | None = None
        self.cancel_reason: str | None = None
        self._root: Any = None
        self.seed = (run.seed or run.id).bytes
        self._journal: list[Event] = []
        self.patches: dict[str, bool] = {}
        self._history: deque[Event] = deque()
        self.recorded: dict[str, Event] = {}
        self._unmet = 0  # events of the history that have been neither delivered nor asked for
        self._drift: ReplayDriftError | None = None
        self.sagas = Sagas()
        self._retry: resuming.Retry | None = None
        self.identities: list[RunIdentity] = []  # who the run becomes at each fork in its history

    # -- driving ------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self.loop.closing

    @property
    def replaying(self) -> bool:
        """Whether there is history left that the code has not lived through again."""
        return self._unmet > 0

    @property
    def retrying(self) -> bool:
        """Whether the history that is left is that of a failure, which the code need not follow."""
        return self._retry is not None

    def begin(self, now_us: int, history: Iterable[Event] = (), *, cancelled: str | None = None) -> None:
        """Start the workflow function.

        Args:
            now_us: when the run was first claimed; the same at every replay.
            history: its events so far, in order; follow with :meth:`replay`.
            cancelled: why the run was cancelled before it began, or None. Its code then does not run at all.
        """
        history, self._retry = resuming.prepare(history)
        self._history.extend(history)
        self._unmet = len(self._history)
        if self._retry is not None:
            self.seq = self._retry.seq
        self.identities = resuming.identities(self.run, self._history)
        self.become(self.identities.pop(0))
        self.recorded = {e.command_id: e for e in self._history if e.type in DECISIONS and e.command_id}
        self.loop.time_us = now_us
        try:
            args, kwargs = self.definition.decode_arguments(self.arguments)
            coroutine = self.definition.fn(*args, **kwargs)
        except Exception as exc:
            self._end(failure_of(exc))
            return
        # An empty context: nothing of the process that happens to run it may leak in.
        self._root = self.loop.create_task(coroutine, context=Context())
        first = self._history[0] if self._history else None
        told = json.loads(first.data) if first is not None and first.type == EventType.CANCEL_REQUESTED else {}
        if told.get("before_start"):
            self.met(self._history.popleft())
            self.cancel(told["reason"])
        elif cancelled is not None and first is None:
            data = json.dumps({"reason": cancelled, "before_start": True})
            self._note(EventType.CANCEL_REQUESTED, None, data, now_us)
            self.cancel(cancelled)
        self._drain()

    def replay(self, limit: int | None = None) -> bool:
        """Deliver history given to :meth:`begin`; at most ``limit`` events, all of it by default.

        Returns:
            bool: True when no history is left.

        Raises:
            ReplayDriftError: the code asks for something else than the history holds.
        """
        history = self._history
        if limit is None:
            limit = len(history)
        while history and limit > 0:
            event = history.popleft()
            limit -= 1
            if event.type in DECISIONS:
                self._pass_decision(event)
                continue
            self.met(event)
            if self._retry is None:
                self._apply(event)
            else:
                self._live_through_again(self._retry, event)
        if history:
            return False
        if self._retry is not None:
            self._resume(self._retry)
        self.asks.replayed()
        return True

    def _pass_decision(self, event: Event) -> None:
        """Go past a decision of the code's, which was asked for, and counted, where the code made it."""
        if event.command_id not in self.recorded:
            return
        if event.type == EventType.PATCHED:
            # A call of patched() may go once its old branch is gone: what is left is the branch it chose.
            self.patches[event.name or ""] = True
        elif self._retry is not None:
            self._retry.drop(event)
        else:
            raise self.drifted(event, told(event), self.asked_instead())
        del self.recorded[event.command_id]
        self.met(event)

    def _live_through_again(self, retry: resuming.Retry, event: Event) -> None:
        """Take of the history of a retried run what still fits, now that what failed is to run again."""
        if not retry.withholds(event):
            try:
                self._apply(event)
                return
            except ReplayDriftError:
                if self._drift is not None:
                    raise
        retry.drop(event)

    def _resume(self, retry: resuming.Retry) -> None:
        self._retry = None
        self.loop.time_us = max(self.loop.time_us, retry.time_us)
        event = self.decide(EventType.RUN_RESUMED, None, None, retry.record())
        delivery.HANDLERS[event.type](self, event, json.loads(event.data))
        if self.outcome is not None:
            self._record_end(self.outcome)
        for name, payload in retry.signals:
            self.signal_received(name, payload, self.loop.time_us)

    def met(self, event: Event) -> None:
        self._unmet -= 1
        if event.seq > self.seq:
            self.seq = event.seq

    def take(self) -> Step:
        """Return what the execution wants since the last call."""
        commands, abandoned, cancels = self.asks.take()
        step = Step(self._journal, commands, abandoned, self.outcome, cancels)
        self._journal = []
        return step

    def close(self) -> None:
        """Give the run up in this process: close its coroutines. Nothing they do meanwhile is recorded."""
        self.loop.close_tasks()
        # Break the cycles between run, loop and tasks: a worker that ends thousands of runs a second must not leave
        # them to the garbage collector.
        self._root = self.loop.execution = None
        self.asks.clear()

    # -- what happens to a run ----------------------------------------------------------------------------------

    def activity_completed(self, command: Command, result: str, started_us: int, ended_us: int) -> bool:
        """Record an activity's result (JSON text). Returns False when nobody wants it any more."""
        if command.answered:
            return False
        more = f',"attempt":{command.attempt}' if command.attempt > 1 else ""
        if command.undoes is not None:
            more += f',"undoes":"{command.undoes}"'
        data = f'{{"args":{fingerprint(command.args)},"started":{started_us}{more},"result":{result}}}'
        if not self._note(EventType.ACTIVITY_COMPLETED, command, data, ended_us):
            return False
        # What _apply does with the same event in a replay, short of comparing the command with itself.
        self.asks.settle(command)
        delivery.complete(command, values.parse(result))
        self._drain()
        return True

    def activity_failed(self, command: Command, error: dict[str, Any], started_us: int, ended_us: int) -> bool:
        """Record that an activity's last attempt failed; ``error`` as :func:`describe_exception` makes it."""
        return self._attempt_failed(EventType.ACTIVITY_FAILED, command, error, started_us, ended_us)

    def activity_retried(
        self, command: Command, error: dict[str, Any], started_us: int, ended_us: int, next_us: int
    ) -> bool:
        """Record that an attempt failed and that the next is due at ``next_us``."""
        return self._attempt_failed(EventType.ACTIVITY_RETRIED, command, error, started_us, ended_us, next_us=next_us)

    def _attempt_failed(
        self, type_: str, command: Command, error: dict[str, Any], started_us: int, ended_us: int, **more: int
    ) -> bool:
        if command.answered:
            return False
        fields = {"started": started_us, "attempt": command.attempt, "error": error, **more}
        data = f'{{"args":{fingerprint(command.args)},{json.dumps(fields)[1:]}'
        return self._record(type_, command, data, ended_us)

    def child_ended(self, reply_to: str, outcome: str, now_us: int) -> bool:
        """Record what a child came to.

        Args:
            reply_to: the command it answers, as its ``parent_command_id`` has it.
            outcome: JSON text of ``{"child", "state", "result", "error"}``.
            now_us: microseconds since the epoch.

        Returns:
            bool: False when nobody waits for it.
        """
        command = self.pending.get(reply_to.partition("#")[0])
        if command is None or command.kind != "child" or command.child.reply_to != reply_to:
            return False
        undoes = "" if command.undoes is None else f'"undoes":"{command.undoes}",'
        data = f'{{"args":{fingerprint(command.args)},{undoes}{outcome.lstrip()[1:]}'
        completed = json.loads(outcome)["state"] == "completed"
        return self._record(EventType.CHILD_COMPLETED if completed else EventType.CHILD_FAILED, command, data, now_us)

    def timer_fired(self, command: Command, now_us: int) -> bool:
        """Record that a timer, or the timeout of a wait, is over."""
        if command.answered:
            return False
        data = f'{{"args":{fingerprint(command.args)}}}'
        return self._record(EventType.TIMER_FIRED, command, data, max(now_us, command.due_us or 0))

    def signal_received(self, name: str, payload: str, now_us: int) -> bool:
        """Record a signal with its payload (JSON text), and who was waiting for it."""
        command = self.asks.first_waiter(name)
        return self._record(EventType.SIGNAL_RECEIVED, command, f'{{"payload":{payload}}}', now_us, name)

    def cancel_requested(self, reason: str, now_us: int) -> bool:
        """Record a request to cancel. A second one changes nothing and is not recorded."""
        if self.cancel_reason is not None:
            return False
        return self._record(EventType.CANCEL_REQUESTED, None, json.dumps({"reason": reason}), now_us)

    def _record(self, type_: str, command: Command | None, data: str, time_us: int, name: str | None = None) -> bool:
        event = self._note(type_, command, data, time_us, name)
        if event is None:
            return False
        self._apply(event)
        return True

    def _note(
        self, type_: str, command: Command | None, data: str, time_us: int, name: str | None = None
    ) -> Event | None:
        """Add an event to the journal and move time on to it; None when the run is over."""
        loop = self.loop
        if self.outcome is not None or loop.closing:
            return None
        self.seq += 1
        if time_us > loop.time_us:
            loop.time_us = time_us
        command_id = None
        if command is not None:
            command_id, name = command.id, command.name
        event = Event(self.seq, type_, command_id, name, data, loop.time_us)
        self._journal.append(event)
        return event

    # -- applying events ----------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        if event.type in TERMINAL:
            delivery.compare_end(self, event)
            return
        if self.outcome is not None:
            raise self.drifted(event, told(event), f"nothing: the code has ended {self.outcome.state}")
        if event.time_us > self.loop.time_us:
            self.loop.time_us = event.time_us
        handler = delivery.HANDLERS.get(event.type)
        if handler is not None:
            handler(self, event, values.parse(event.data))
            self._drain()

    def cancel(self, reason: str) -> None:
        """Raise ``CancelledError`` at the run's current await, and have its children cancelled."""
        self.cancel_reason = reason
        self.asks.cancel_children(reason or "its parent was cancelled")
        if self._root is not None:
            self._root.cancel(reason or None)

    def become(self, identity: RunIdentity) -> None:
        """Go on as this run: what the code has seen so far it has seen as the run it was forked from."""
        self.run = identity
        self.seed = (identity.seed or identity.id).bytes
        for command in self.pending.values():
            if command.child is not None:
                command.child.belong_to(identity.id, command.id, command.issued_us)

    def decide(self, type_: str, command_id: str | None, name: str | None, data: str) -> Event:
        """Journal a decision of the code's."""
        self.seq += 1
        event = Event(self.seq, type_, command_id, name, data, self.loop.time_us)
        self._journal.append(event)
        return event

    def set_progress(self, value: Any) -> None:
        text = values.encode(value, path="progress", max_bytes=self.max_bytes)
        if not self.closing:
            self.progress = text

    # -- the end ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        try:
            self.loop.drain()
        except BaseException as exc:
            deadlock = isinstance(exc, WorkflowDeadlockError)
            if deadlock and self.replaying:
                raise  # history says that the code once got past here: nothing is to be recorded
            # SystemExit and the like pass through a task on their way: they end the run, never the worker.
            if deadlock or (self._drift is None and (self._root is None or not self._root.done())):
                self._end(failure_of(exc))
                return
        if self._drift is not None:
            raise self._drift
        root = self._root
        if self.outcome is None and root is not None and root.done():
            goes_on = None if root.cancelled() else continuation_of(root.exception())
            if goes_on is None:
                self._end(outcome_of(root, self.cancel_reason, self.definition.returns, self.max_bytes))
            else:
                self._end(Outcome("completed", None, None, successor=self._successor(goes_on.input)))

    def _successor(self, input_: str) -> Successor:
        id_ = derived_child(self.id, "continued", None, self.loop.time_us)
        return Successor(id_, input_, self.asks.kept())

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.asks.abandon_all(outcome.state)
        if not self._unmet and self._retry is None:
            self._record_end(outcome)

    def _record_end(self, outcome: Outcome) -> None:
        self.decide(outcome.event_type, None, None, outcome.event_data)

    # -- words --------------------------------------------------------------------------------------------------

    def waiting_on(self) -> list[dict[str, Any]]:
        """Say what the run waits for, as API values: a list of ``{"kind", …}`` with ISO 8601 times."""
        return [command.waiting() for command in self.pending.values()]

    def drifted(self, event: Event, history: str, code: str) -> ReplayDriftError:
        position = f"{event.command_id or event.type} (event {event.seq})"
        return ReplayDriftError(self.id, position, history, code)

    def asked_instead(self) -> str:
        return asked(self.pending.values(), self.outcome and self.outcome.state)

    def raise_drift(self, command_id: str, history: str, code: str) -> None:
        # Raised inside user code, which may catch it: kept, so that the drain ends with it whatever the code does.
        self._drift = ReplayDriftError(self.id, command_id, history, code)
        raise self._drift
