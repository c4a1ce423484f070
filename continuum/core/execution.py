"""One run in memory: drives a workflow function from its history, and records what comes in.

Live and replay are the same code: every event, fresh or read back, goes through :meth:`Execution.apply`, or through
what does the same for the plainest in less time (:mod:`continuum.core.strides`, ``activity_completed``). Whoever drives
an execution tells it what happened (``activity_completed``, ``timer_fired``, …), and then takes the step it made: the
events to journal, the commands to carry out once these are durable, and the outcome.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from continuum import values
from continuum.core import delivery, resuming
from continuum.core.asks import Asks
from continuum.core.children import Successor
from continuum.core.commands import Command
from continuum.core.drift import asked, asked_otherwise, parted, told
from continuum.core.history import RESTARTS, TERMINAL, WALKED_PAST, Event, EventType, event_of, fingerprint, types_of
from continuum.core.identity import RunIdentity
from continuum.core.loop import DeterministicLoop
from continuum.core.outcomes import Outcome, Step, continuation_of, failure_of, outcome_of, step_of
from continuum.core.sagas import Sagas
from continuum.core.strides import deliver
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
        self._retried_us: int | None = None
        self._blank(DeterministicLoop(self))

    def _blank(self, loop: DeterministicLoop) -> None:
        self.loop = loop
        self.seq = 0
        self.outcome: Outcome | None = None
        self.asks = Asks(self.loop, self.definition, self.max_bytes)
        self.pending = self.asks.pending
        self.issue, self.abandon = self.asks.issue, self.asks.abandon
        self.start_timer, self.next_timer = self.asks.start_timer, self.asks.next_timer
        self.progress: str | None = None
        self.cancel_reason: str | None = None
        self._root: Any = None
        self.journal: list[Event] = []
        self.patches: dict[str, bool] = {}
        self._history: deque[Event] = deque()
        self._types: frozenset[str] = frozenset()  # those of the history
        self.events: list[Event] = []  # all of the history, as long as it is lived through
        self.recorded: dict[str, Event] = {}
        self._unmet = 0  # events of the history that have been neither delivered nor asked for
        self._last_us = 0  # when the last of them was recorded
        self._marks = 0  # how many of them only say that another goes on from here
        self.drift: ReplayDriftError | None = None
        self.sagas = Sagas()
        self.retry: resuming.Retry | None = None  # while the code lives through a failure that it need not follow
        self.identities: list[RunIdentity] = []  # who the run becomes at each fork in its history

    # -- driving ------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self.loop.closing

    @property
    def replaying(self) -> bool:
        """Whether there is history left that the code has not lived through again."""
        return self._unmet > self._marks

    def begin(self, now_us: int, history: Iterable[Event] = (), *, cancelled: str | None = None) -> None:
        """Start the workflow function.

        Args:
            now_us: when the run was first claimed; the same at every replay.
            history: its events so far, in order; follow with :meth:`replay`.
            cancelled: why the run was cancelled before it began, or None. Its code then does not run at all.
        """
        if events := list(history):
            self._expect(events, *resuming.prepare(events, now_us))
            if EventType.RUN_RETRIED in self._types:
                self._retried_us = resuming.last_retried_us(events)
        self._begin(now_us, cancelled)

    def _expect(self, events: list[Event], history: list[Event], retry: resuming.Retry | None) -> None:
        """Set out to live through a history."""
        self.retry, self.events, self._types = retry, events, types_of(events)
        self._history.extend(history)
        self._unmet = len(history)
        self._marks = resuming.marks_at_the_end(history)
        self.seq, self._last_us = events[-1].seq, events[-1].time_us

    def _begin(self, now_us: int, cancelled: str | None = None) -> None:
        self.asks.retried_us = self._retried_us
        if EventType.RUN_FORKED in self._types:
            self.identities = resuming.identities(self.run, self._history)
            self.become(self.identities.pop(0))
        if not WALKED_PAST.isdisjoint(self._types):
            self.recorded = {e.command_id: e for e in self._history if e.type in WALKED_PAST and e.command_id}
        self.loop.time_us = now_us
        try:
            args, kwargs = self.definition.decode_arguments(self.arguments)
            coroutine = self.definition.fn(*args, **kwargs)
        except Exception as exc:
            self._end(failure_of(exc))
            return
        self._root = self.loop.create_root(coroutine)
        first = self._history[0] if self._history else None
        told = json.loads(first.data) if first is not None and first.type == EventType.CANCEL_REQUESTED else {}
        if told.get("before_start"):
            self.met(self._history.popleft())
            self.cancel(told["reason"])
        elif cancelled is not None and first is None:
            data = json.dumps({"reason": cancelled, "before_start": True})
            self._note(EventType.CANCEL_REQUESTED, None, data, now_us)
            self.cancel(cancelled)
        self.drain()

    def replay(self, limit: int | None = None) -> bool:
        """Deliver history given to :meth:`begin`; at most ``limit`` events, all of it by default.

        Returns:
            bool: True when no history is left.

        Raises:
            ReplayDriftError: the code asks for something else than the history holds.
        """
        left = sys.maxsize if limit is None else limit
        while True:
            while self._history:
                if left <= 0:
                    return False
                left -= deliver(self, left)
            retry = self.retry
            if retry is None:
                break
            if retry.undone <= retry.again:
                self.retry = None
                resuming.resume(self, retry)
                break
            # Some steps were undone because of the failure: they have to run again as well, so once more from the top.
            self._blank(self.loop.renewed())
            undone = retry.again | retry.undone
            self._expect(retry.events, *resuming.prepare(retry.events, retry.began_us, undone))
            self._begin(retry.began_us)
        self.asks.replayed()
        self.events = []
        return True

    def met(self, event: Event) -> None:
        self._unmet -= 1
        if event.seq > self.seq:
            self.seq = event.seq

    def take(self) -> Step:
        """Return what the execution wants since the last call."""
        commands, abandoned, cancels = self.asks.take()
        journal, self.journal = self.journal, []
        return step_of((journal, commands, abandoned, self.outcome, cancels))

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
        now_us = self.loop.time_us
        took_us = (ended_us if ended_us > now_us else now_us) - started_us
        data = f'{{"args":{fingerprint(command.args)},"took":{took_us}{more},"result":{result}}}'
        if not self._note(EventType.ACTIVITY_COMPLETED, command, data, ended_us):
            return False
        # What apply() does with the same event in a replay, short of comparing the command with itself.
        self.asks.settle(command)
        delivery.complete(command, values.parse(result))
        self.drain()
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
        took_us = max(ended_us, self.loop.time_us) - started_us
        fields = {"took": took_us, "attempt": command.attempt, "error": error, **more}
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
        self.apply(event)
        return True

    def _note(
        self, type_: str, command: Command | None, data: str, time_us: int, name: str | None = None
    ) -> Event | None:
        """Add an event to the journal and move time on to it; None when the run is over."""
        loop = self.loop
        if self.outcome is not None or loop.closing:
            return None
        self.seq = seq = self.seq + 1
        if time_us > loop.time_us:
            loop.time_us = time_us
        command_id = None
        if command is not None:
            command_id, name = command.id, command.name
        event = event_of((seq, type_, command_id, name, data, loop.time_us))
        self.journal.append(event)
        return event

    # -- applying events ----------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Let an event happen to the code.

        Raises:
            ReplayDriftError: it does not fit.
        """
        _, type_, _, _, data, time_us = event
        if type_ in TERMINAL:
            delivery.compare_end(self, event)
            return
        if self.outcome is not None and type_ not in RESTARTS:
            raise self.drifted(event, told(event), f"nothing: the code has ended {self.outcome.state}")
        elapsed_us = time_us - self.loop.time_us
        if elapsed_us > 0:
            self.loop.time_us = time_us
            if type_ in RESTARTS:
                self.asks.postpone(elapsed_us)
        handler = delivery.HANDLERS.get(type_)
        if handler is not None:
            handler(self, event, values.parse(data))
            self.drain()

    def cancel(self, reason: str) -> None:
        """Raise ``CancelledError`` at the run's current await, and have its children cancelled."""
        self.cancel_reason = reason
        self.asks.cancel_children(reason or "its parent was cancelled")
        if self._root is not None:
            self._root.cancel(reason or None)

    def cancel_again(self) -> None:
        """Cancel the workflow function at its next await: the request came while it could not be told."""
        root = self._root
        if self.cancel_reason is not None and root is asyncio.current_task(self.loop):
            root.uncancel()
            root.cancel(self.cancel_reason or None)

    def become(self, identity: RunIdentity) -> None:
        """Go on as this run: what the code has seen so far it has seen as the run it was forked from."""
        self.run = identity
        self.asks.belong_to(identity.id)

    def decide(self, type_: str, command_id: str | None, name: str | None, data: str) -> Event:
        """Journal a decision of the code's."""
        self.seq += 1
        if self.retry is not None:
            data = self.retry.placed(data)
        event = Event(self.seq, type_, command_id, name, data, max(self.loop.time_us, self._last_us))
        self.journal.append(event)
        return event

    def set_progress(self, value: Any) -> None:
        text = values.encode(value, path="progress", max_bytes=self.max_bytes)
        if not self.closing:
            self.progress = text

    # -- the end ------------------------------------------------------------------------------------------------

    def drain(self, stretch: Callable[[], None] | None = None) -> None:
        """Let the code go on as far as it can, and see what it has come to. ``stretch`` as for the loop's drain."""
        try:
            self.loop.drain(stretch)
        except BaseException as exc:
            fatal = isinstance(exc, WorkflowDeadlockError) or exc is self.loop.violation
            if fatal and self.replaying:
                raise  # history says that the code once got past here: nothing is to be recorded
            # SystemExit and the like pass through a task on their way: they end the run, never the worker.
            if fatal or (self.drift is None and (self._root is None or not self._root.done())):
                self._end(failure_of(exc))
                return
        if self.drift is not None:
            raise self.drift
        root = self._root
        if self.outcome is None and root is not None and root.done():
            goes_on = None if root.cancelled() else continuation_of(root.exception())
            if goes_on is None:
                self._end(outcome_of(root, self.cancel_reason, self.definition.returns, self.max_bytes))
            else:
                id_ = derived_child(self.id, "continued", None, self.loop.time_us)
                self._end(Outcome("completed", None, None, successor=Successor(id_, goes_on.input, self.asks.kept())))

    def _end(self, outcome: Outcome) -> None:
        if outcome.state == "failed":
            outcome = outcome._replace(cancelled=tuple(self.asks.given_up))
        self.outcome = outcome
        self.asks.abandon_all(outcome.state)
        if not self.replaying and self.retry is None:
            self.decide(outcome.event_type, None, None, outcome.event_data)

    # -- words --------------------------------------------------------------------------------------------------

    def waiting_on(self, most: int | None = None) -> list[dict[str, Any]]:
        """Say what the run waits for, as API values: a list of ``{"kind", …}`` with ISO 8601 times, at most so many."""
        return [command.waiting() for command in islice(self.pending.values(), most)]

    def drifted(self, event: Event, history: str, code: str) -> ReplayDriftError:
        return parted(self, event, history, code)

    def asked_instead(self) -> str:
        return asked(self.pending.values(), self.outcome and self.outcome.state)

    def raise_drift(self, command_id: str, history: str, code: str) -> None:
        # Raised inside user code, which may catch it: kept, so that the drain ends with it whatever the code does.
        self.drift = asked_otherwise(self, command_id, history, code)
        raise self.drift
