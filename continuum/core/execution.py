"""One run in memory: drives a workflow function from its history, and records what comes in.

Live and replay are the same code: every event, fresh or read back, goes through :meth:`Execution._apply`. Whoever
drives an execution tells it what happened (``activity_completed``, ``timer_fired``, …), and then takes the step it
made: the events to journal, the commands to carry out once these are durable, and the outcome.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import UUID

from continuum import values
from continuum.core.commands import Command
from continuum.core.failures import describe_exception
from continuum.core.history import DECISIONS, TERMINAL, Event, EventType, fingerprint
from continuum.core.loop import LAST_US, DeterministicLoop, Released, Scope, TimerHandle
from continuum.exceptions import ActivityError, DurableValueError, ReplayDriftError, SignalTimeoutError

__all__ = ["Execution", "Outcome", "RunIdentity", "Step"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a run is, whatever happens to it. ``seed`` is what its randomness derives from."""

    id: UUID
    namespace: str = "default"
    version: int = 1
    parent_run_id: UUID | None = None
    started_us: int = 0
    seed: UUID | None = None


class Outcome(NamedTuple):
    """How a run ended: ``completed`` with ``result`` (JSON text), ``failed`` or ``cancelled`` with ``error``."""

    state: str
    result: str | None
    error: dict[str, Any] | None


class Step(NamedTuple):
    """What an execution wants since the last step was taken.

    Attributes:
        journal: events to write, in order.
        commands: activities to start, once the journal is durable.
        abandoned: commands taken before whose results nobody wants any more.
        outcome: how the run ended, or None.
    """

    journal: list[Event]
    commands: list[Command]
    abandoned: list[Command]
    outcome: Outcome | None


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
        self.run = run
        self.arguments = arguments
        self.max_bytes = max_bytes
        self.loop = DeterministicLoop(self)
        self.seq = 0
        self.outcome: Outcome | None = None
        self.pending: dict[str, Command] = {}
        self.progress: str | None = None
        self.cancel_reason: str | None = None
        self._root: Any = None
        self._seed = (run.seed or run.id).bytes
        self._journal: list[Event] = []
        self._issued: list[Command] = []
        self._abandoned: list[Command] = []
        self._timers: list[tuple[int, int, Command]] = []
        self._mailbox: dict[str, deque[Any]] = {}
        self._waiters: dict[str, deque[Command]] = {}
        self._patches: dict[str, bool] = {}
        self._history: deque[Event] = deque()
        self._recorded: dict[str, Event] = {}
        self._unmet = 0  # events of the history that have been neither delivered nor asked for
        self._drift: ReplayDriftError | None = None

    # -- driving ------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self.loop.closing

    @property
    def replaying(self) -> bool:
        """Whether there is history left that the code has not lived through again."""
        return self._unmet > 0

    def begin(self, now_us: int, history: Iterable[Event] = (), *, cancelled: str | None = None) -> None:
        """Start the workflow function.

        Args:
            now_us: when the run was first claimed; the same at every replay.
            history: its events so far, in order; follow with :meth:`replay`.
            cancelled: why the run was cancelled before it began, or None. Its code then does not run at all.
        """
        self._history.extend(history)
        self._unmet = len(self._history)
        self._recorded = {e.command_id: e for e in self._history if e.type in DECISIONS and e.command_id}
        self.loop.time_us = now_us
        try:
            args, kwargs = self.definition.decode_arguments(self.arguments)
            coroutine = self.definition.fn(*args, **kwargs)
        except Exception as exc:
            self._end("failed", None, describe_exception(exc))
            return
        # An empty context: nothing of the process that happens to run it may leak in.
        self._root = self.loop.create_task(coroutine, context=Context())
        first = self._history[0] if self._history else None
        told = json.loads(first.data) if first is not None and first.type == EventType.CANCEL_REQUESTED else {}
        if told.get("before_start"):
            self._met(self._history.popleft())
            self._cancel(told["reason"])
        elif cancelled is not None and first is None:
            data = json.dumps({"reason": cancelled, "before_start": True})
            self._note(EventType.CANCEL_REQUESTED, None, data, now_us)
            self._cancel(cancelled)
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
                if event.command_id not in self._recorded:
                    continue  # asked for, and counted, where the code made it
                if event.type != EventType.PATCHED:
                    raise self._drifted(event, _told(event), self._asked_instead())
                # A call of patched() may go once its old branch is gone: what is left is the branch it chose.
                del self._recorded[event.command_id]
                self._patches[event.name or ""] = True
                self._met(event)
                continue
            self._met(event)
            self._apply(event)
        return not history

    def _met(self, event: Event) -> None:
        self._unmet -= 1
        if event.seq > self.seq:
            self.seq = event.seq

    def take(self) -> Step:
        """Return what the execution wants since the last call."""
        commands = [command for command in self._issued if not command.answered]
        for command in commands:
            command.taken = True
        step = Step(self._journal, commands, self._abandoned, self.outcome)
        self._journal, self._issued, self._abandoned = [], [], []
        return step

    def close(self) -> None:
        """Give the run up in this process: close its coroutines. Nothing they do meanwhile is recorded."""
        self.loop.close_tasks()
        # Break the cycles between run, loop and tasks: a worker that ends thousands of runs a second must not leave
        # them to the garbage collector.
        self._root = self.loop.execution = None
        self.pending.clear()
        self._timers.clear()
        self._waiters.clear()

    # -- what happens to a run ----------------------------------------------------------------------------------

    def activity_completed(self, command: Command, result: str, started_us: int, ended_us: int) -> bool:
        """Record an activity's result (JSON text). Returns False when nobody wants it any more."""
        if command.answered:
            return False
        attempt = f',"attempt":{command.attempt}' if command.attempt > 1 else ""
        data = f'{{"args":{fingerprint(command.args)},"started":{started_us}{attempt},"result":{result}}}'
        if not self._note(EventType.ACTIVITY_COMPLETED, command, data, ended_us):
            return False
        # What _apply does with the same event in a replay, short of comparing the command with itself.
        self._settle_command(command)
        self._complete(command, values.parse(result))
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

    def timer_fired(self, command: Command, now_us: int) -> bool:
        """Record that a timer, or the timeout of a wait, is over."""
        if command.answered:
            return False
        data = f'{{"args":{fingerprint(command.args)}}}'
        return self._record(EventType.TIMER_FIRED, command, data, max(now_us, command.due_us or 0))

    def signal_received(self, name: str, payload: str, now_us: int) -> bool:
        """Record a signal with its payload (JSON text), and who was waiting for it."""
        waiters = self._waiters.get(name)
        command = waiters[0] if waiters else None
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
            self._compare_end(event)
            return
        if self.outcome is not None:
            raise self._drifted(event, _told(event), f"nothing: the code has ended {self.outcome.state}")
        if event.time_us > self.loop.time_us:
            self.loop.time_us = event.time_us
        handler = _HANDLERS.get(event.type)
        if handler is not None:
            handler(self, event, json.loads(event.data))
            self._drain()

    def _on_activity_completed(self, event: Event, data: dict[str, Any]) -> None:
        self._complete(self._answer(event, "activity", data), data["result"])

    def _complete(self, command: Command, result: Any) -> None:
        future = command.future
        if not future.done():
            try:
                value = values.restore(result, command.definition.returns)
            except Exception as exc:
                future.set_exception(exc)
            else:
                future.set_result(value)

    def _on_activity_failed(self, event: Event, data: dict[str, Any]) -> None:
        command = self._answer(event, "activity", data)
        if not command.future.done():
            error = data["error"]
            command.future.set_exception(
                ActivityError(command.name, data["attempt"], error["type"], error["message"], error.get("details"))
            )

    def _on_activity_retried(self, event: Event, data: dict[str, Any]) -> None:
        command = self._match(event, "activity", data)
        command.attempt = data["attempt"] + 1
        command.not_before_us = data["next_us"]
        command.last_error = data["error"]

    def _on_timer_fired(self, event: Event, data: dict[str, Any]) -> None:
        command = self._answer(event, ("timer", "signal"), data)
        if command.handle is not None:
            self.loop.fire(command.handle)
        elif not command.future.done():
            if command.kind == "signal":
                self._leave_line(command)
                timeout = (command.due_us - command.issued_us) / 1e6
                command.future.set_exception(SignalTimeoutError(command.name, timeout))
            else:
                command.future.set_result(None)

    def _on_signal_received(self, event: Event, data: dict[str, Any]) -> None:
        name = event.name or ""
        if event.command_id is None:
            if name in self._waiters:
                raise self._drifted(event, f"{_told(event)}, kept for later", str(self._waiters[name][0]))
            self._mailbox.setdefault(name, deque()).append(data["payload"])
            return
        command = self.pending.get(event.command_id)
        if command is None or command.kind != "signal" or command.name != name:
            raise self._drifted(event, _told(event), self._asked_instead() if command is None else str(command))
        self._settle_command(command)
        self._leave_line(command)
        self._hand_over(command, data["payload"])

    def _hand_over(self, command: Command, payload: Any) -> None:
        if command.future.done():
            return
        try:
            value = values.restore(payload, (self.definition.signals or {}).get(command.name))
        except Exception as exc:  # not of the declared type: whoever waits for it has to know
            command.future.set_exception(exc)
        else:
            command.future.set_result(value)

    def _leave_line(self, command: Command) -> None:
        waiters = self._waiters[command.name]
        waiters.remove(command)
        if not waiters:
            del self._waiters[command.name]

    def _on_cancel_requested(self, event: Event, data: dict[str, Any]) -> None:
        self._cancel(data.get("reason") or "")

    def _cancel(self, reason: str) -> None:
        self.cancel_reason = reason
        if self._root is not None:
            self._root.cancel(reason or None)

    def _match(self, event: Event, kinds: str | tuple[str, ...], data: dict[str, Any]) -> Command:
        """Find the pending command an event answers, and check that it is the one history means."""
        command = self.pending.get(event.command_id)
        if command is None:
            raise self._drifted(event, _told(event), self._asked_instead())
        if isinstance(kinds, str):
            kinds = (kinds,)
        if command.kind not in kinds or command.name != event.name:
            raise self._drifted(event, _told(event), str(command))
        asked = fingerprint(command.args)
        # The same text is the common case and costs no parsing; otherwise what counts is what it says.
        if not event.data.startswith(f'{{"args":{asked}') and not _same(json.loads(asked), data.get("args")):
            raise self._drifted(event, _told(event), str(command))
        return command

    def _answer(self, event: Event, kinds: str | tuple[str, ...], data: dict[str, Any]) -> Command:
        command = self._match(event, kinds, data)
        self._settle_command(command)
        return command

    def _settle_command(self, command: Command) -> None:
        del self.pending[command.id]
        command.answered = True

    # -- what the code asks for ---------------------------------------------------------------------------------

    def issue(self, effect: Any) -> Command:
        """Turn an effect that the running task awaits into a command."""
        loop = self.loop
        scope = loop.scope()
        scope.effects += 1
        kind = effect.kind
        command = Command(f"{scope.path}:{scope.effects}", kind, effect.name, loop.time_us)
        command.future = loop.create_future()
        if kind == "activity":
            command.definition = effect.definition
            command.options = effect.options
            command.args = effect.definition.encode_arguments(
                effect.args, effect.kwargs or {}, path=effect.name, max_bytes=self.max_bytes
            )
            self._issued.append(command)
        elif kind == "timer":
            self._set_timer(command, effect.args)
        else:
            self._wait_for_signal(command, effect.args)
        if not command.answered:
            self.pending[command.id] = command
        return command

    def start_timer(self, delay_us: int, handle: TimerHandle) -> Command:
        """Turn ``loop.call_later`` into a command."""
        scope = self.loop.scope()
        scope.effects += 1
        command = Command(f"{scope.path}:{scope.effects}", "timer", None, self.loop.time_us)
        command.handle = handle
        self._set_timer(command, delay_us)
        self.pending[command.id] = command
        return command

    def _set_timer(self, command: Command, due: int | datetime) -> None:
        if isinstance(due, datetime):
            due_us = (due - _EPOCH) // timedelta(microseconds=1)
            command.args = f'["{due.isoformat()}"]'
        else:
            due_us = self.loop.time_us + due
            command.args = f"[{due / 1e6!r}]"
        command.due_us = min(due_us, LAST_US)
        heapq.heappush(self._timers, (command.due_us, self.loop.next_serial(), command))

    def _wait_for_signal(self, command: Command, timeout_us: int | None) -> None:
        kept = self._mailbox.get(command.name)
        if kept:
            command.answered = True
            payload = kept.popleft()
            if not kept:
                del self._mailbox[command.name]
            self._hand_over(command, payload)
            return
        if timeout_us is None:
            command.args = "[]"
        else:
            self._set_timer(command, timeout_us)
        self._waiters.setdefault(command.name, deque()).append(command)

    def abandon(self, command: Command) -> None:
        """Forget a command whose result nobody waits for any more."""
        if command.answered or self.closing:
            return
        command.answered = True
        self.pending.pop(command.id, None)
        if command.kind == "signal":
            self._leave_line(command)
        elif command.taken:
            self._abandoned.append(command)

    def next_timer(self) -> Command | None:
        """Return the timer that is due first, or None. Ties go by creation."""
        timers = self._timers
        while timers and timers[0][2].answered:
            heapq.heappop(timers)
        if len(timers) > 256 and len(timers) > 4 * len(self.pending):
            self._timers = timers = [entry for entry in timers if not entry[2].answered]
            heapq.heapify(timers)
        return timers[0][2] if timers else None

    def side_effect(self, fn: Any, args: tuple[Any, ...]) -> Any:
        if self.closing:
            raise Released
        self.loop.refuse_aside("side_effect()")
        scope = self.loop.scope()
        scope.effects += 1
        command_id = f"{scope.path}:{scope.effects}"
        name = getattr(fn, "__qualname__", type(fn).__name__)
        returns = values.return_annotation(fn)
        event = self._recorded.pop(command_id, None)
        if event is None:
            if self.replaying:
                self._raise_drift(command_id, "no such record", f"side_effect {name}")
            event = self._decide(EventType.SIDE_EFFECT, command_id, name, self._run_aside(fn, args, name, returns))
        else:
            self._met(event)
            if event.type != EventType.SIDE_EFFECT or event.name != name:
                self._raise_drift(command_id, _told(event), f"side_effect {name}")
        data = json.loads(event.data)
        if "refused" in data:
            raise DurableValueError(*data["refused"])
        if "error" in data:
            error = data["error"]
            raise ActivityError(name, 1, error["type"], error["message"], error.get("details"))
        return values.restore(data["result"], returns)

    def _run_aside(self, fn: Any, args: tuple[Any, ...], name: str, returns: Any) -> str:
        # A replay does not run the function: nothing it does may count in the code around it.
        self.loop.aside = Scope("~aside")
        try:
            value = values.encode(fn(*args), returns, path=f"side_effect {name}", max_bytes=self.max_bytes)
        except DurableValueError as exc:
            return json.dumps({"refused": [exc.path, exc.reason]})
        except BaseException as exc:
            return json.dumps({"error": describe_exception(exc)})
        finally:
            self.loop.aside = None
        return f'{{"result":{value}}}'

    def patched(self, name: str) -> bool:
        decision = self._patches.get(name)
        if decision is None:
            if self.closing:
                return False
            self.loop.refuse_aside("patched()")
            command_id = f"patch:{name}"
            event = self._recorded.pop(command_id, None)
            if event is not None:
                self._met(event)
                decision = True
            elif self.replaying:
                decision = False
            else:
                self._decide(EventType.PATCHED, command_id, name, "{}")
                decision = True
            self._patches[name] = decision
        return decision

    def _decide(self, type_: str, command_id: str, name: str, data: str) -> Event:
        self.seq += 1
        event = Event(self.seq, type_, command_id, name, data, self.loop.time_us)
        self._journal.append(event)
        return event

    def draw(self, size: int) -> bytes:
        """Return bytes that look random and depend on nothing but the run's seed and the place in its code."""
        scope = self.loop.scope()
        scope.draws += 1
        return blake2b(f"{scope.path}#{scope.draws}".encode(), digest_size=size, key=self._seed).digest()

    def set_progress(self, value: Any) -> None:
        text = values.encode(value, path="progress", max_bytes=self.max_bytes)
        if not self.closing:
            self.progress = text

    # -- the end ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        try:
            self.loop.drain()
        except BaseException as exc:
            # SystemExit and the like pass through a task on their way: they end the run, never the worker.
            if self._drift is None and (self._root is None or not self._root.done()):
                self._end("failed", None, describe_exception(exc))
                return
        if self._drift is not None:
            raise self._drift
        root = self._root
        if self.outcome is None and root is not None and root.done():
            self._settle(root)

    def _settle(self, root: Any) -> None:
        if root.cancelled():
            if self.cancel_reason is None:
                self._end("failed", None, _cancelled("the workflow cancelled itself"))
            else:
                self._end("cancelled", None, _cancelled(self.cancel_reason))
            return
        exc = root.exception()
        if exc is None:
            try:
                result = values.encode(root.result(), self.definition.returns, path="result", max_bytes=self.max_bytes)
            except DurableValueError as refused:
                self._end("failed", None, describe_exception(refused))
            else:
                self._end("completed", result, None)
        else:
            self._end("failed", None, describe_exception(exc))

    def _end(self, state: str, result: str | None, error: dict[str, Any] | None) -> None:
        self.outcome = Outcome(state, result, error)
        for command in list(self.pending.values()):
            self.abandon(command)
        if not self._unmet:
            self.seq += 1
            data = self._end_data()
            self._journal.append(Event(self.seq, _END_EVENTS[state], None, None, data, self.loop.time_us))

    def _end_data(self) -> str:
        _, result, error = self.outcome  # type: ignore[misc]
        if error is not None:
            return json.dumps({"type": error["type"]})
        return f'{{"result":{fingerprint(result)}}}' if result is not None else "{}"

    def _compare_end(self, event: Event) -> None:
        if self.outcome is None:
            raise self._drifted(event, _told(event), self._asked_instead())
        ended = self._end_data()
        if event.type != _END_EVENTS[self.outcome.state] or not _same(json.loads(event.data), json.loads(ended)):
            raise self._drifted(
                event, f"{_told(event)} {event.data}", f"the code has ended {self.outcome.state} {ended}"
            )

    # -- words --------------------------------------------------------------------------------------------------

    def waiting_on(self) -> list[dict[str, Any]]:
        """Say what the run waits for, as API values: a list of ``{"kind", …}`` with ISO 8601 times."""
        return [command.waiting() for command in self.pending.values()]

    def _asked_instead(self) -> str:
        if self.outcome is not None:
            return f"nothing: the code has ended {self.outcome.state}"
        if not self.pending:
            return "nothing: the code waits for nothing that history could answer"
        return "something else: " + "; ".join(str(c) for c in list(self.pending.values())[:5])

    def _drifted(self, event: Event, history: str, code: str) -> ReplayDriftError:
        position = f"{event.command_id or event.type} (event {event.seq})"
        return ReplayDriftError(self.run.id, position, history, code)

    def _raise_drift(self, command_id: str, history: str, code: str) -> None:
        # Raised inside user code, which may catch it: kept, so that the drain ends with it whatever the code does.
        self._drift = ReplayDriftError(self.run.id, command_id, history, code)
        raise self._drift


def _cancelled(message: str) -> dict[str, Any]:
    return {"type": "CancelledError", "message": message, "traceback": "", "details": None}


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON trees say the same: unlike in Python, 1, 1.0 and true are not equal."""
    return json.dumps(one) == json.dumps(other)


def _told(event: Event) -> str:
    kind = event.type.replace("_", " ")
    try:
        data = json.loads(event.data)
    except ValueError:
        data = {}
    args = data.get("args") if isinstance(data, dict) else None
    if args is None:
        shown = ""
    else:
        shown = f" with arguments {args if isinstance(args, str) else json.dumps(args, separators=(',', ':'))}"
    return f"{event.command_id or ''} {kind} {event.name or ''}".strip() + shown


_HANDLERS = {
    EventType.ACTIVITY_COMPLETED: Execution._on_activity_completed,
    EventType.ACTIVITY_FAILED: Execution._on_activity_failed,
    EventType.ACTIVITY_RETRIED: Execution._on_activity_retried,
    EventType.TIMER_FIRED: Execution._on_timer_fired,
    EventType.SIGNAL_RECEIVED: Execution._on_signal_received,
    EventType.CANCEL_REQUESTED: Execution._on_cancel_requested,
}

_END_EVENTS = {
    "completed": EventType.RUN_COMPLETED,
    "failed": EventType.RUN_FAILED,
    "cancelled": EventType.RUN_CANCELLED,
}
