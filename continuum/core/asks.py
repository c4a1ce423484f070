"""What the code of one run has asked for and not yet got: activities, children, timers, signals."""

from __future__ import annotations

import heapq
import json
from asyncio import Future
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from continuum import values
from continuum.core.children import ChildStart
from continuum.core.commands import Command
from continuum.core.drift import same
from continuum.core.handles import TimerHandle
from continuum.core.history import fingerprint
from continuum.core.loop import LAST_US, DeterministicLoop
from continuum.exceptions import ChildDepthError

__all__ = ["MAX_DEPTH", "Asks"]

#: How deep children may be nested: a bound on what a workflow that starts itself can do.
MAX_DEPTH = 100

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Asks:
    """The open commands of a run, by identity, and what is kept until somebody asks for it.

    Args:
        loop: the run's loop.
        definition: the run's workflow.
        max_bytes: largest value it may journal, in bytes of JSON text; None for no limit.

    Attributes:
        pending: open commands by id, in the order they were issued.
        issued: commands to be carried out once they are taken, those of them that are not answered by then.
        stride: the stretch of history that is being lived through, or None.
        given_up: commands whose children were cancelled, or never started, because the code did not want them any more.
    """

    def __init__(self, loop: DeterministicLoop, definition: Any, max_bytes: int | None) -> None:
        self.pending: dict[str, Command] = {}
        self.given_up: dict[str, None] = {}
        self._loop = loop
        self._definition = definition
        self._max_bytes = max_bytes
        self.issued: list[Command] = []
        self._abandoned: list[Command] = []
        self._cancels: list[Command] = []
        self._generations: dict[str, int] = {}
        self.retried_us: int | None = None
        # Children that are there already, by the command yet to come: workflow, arguments, run id.
        self.known: dict[str, list[Any]] = {}
        self._timers: list[tuple[int, int, Command]] = []
        self._mailbox: dict[str, deque[Any]] = {}
        self._waiters: dict[str, deque[Command]] = {}
        self.stride: Any = None

    def take(self) -> tuple[list[Command], list[Command], list[Command]]:
        """Return the commands to carry out, the activities nobody waits for any more, and the children to cancel."""
        # A child that was started on its own account is, also if its parent has ended meanwhile.
        commands = []
        for command in self.issued:
            if not command.answered or (command.detached and not command.future.done()):
                command.taken = True
                commands.append(command)
        abandoned, cancels = self._abandoned, self._cancels
        self.issued, self._abandoned, self._cancels = [], [], []
        return commands, abandoned, cancels

    def replayed(self) -> None:
        """All history is lived through: what is open now may have been taken by the process before."""
        for command in self.issued:
            command.taken = True

    def clear(self) -> None:
        """Forget everything: the run is given up in this process."""
        self.pending.clear()
        self.issued.clear()
        self._cancels.clear()
        self._timers.clear()
        self._waiters.clear()
        self._mailbox.clear()

    def settle(self, command: Command) -> None:
        """Take an answered command off the books."""
        del self.pending[command.id]
        command.answered = True

    def first_waiter(self, name: str) -> Command | None:
        """Return the command that gets the next signal of a name, or None."""
        waiters = self._waiters.get(name)
        return waiters[0] if waiters else None

    def keep(self, name: str, payload: Any) -> None:
        """Keep a signal's payload (a JSON tree) until somebody waits for it."""
        self._mailbox.setdefault(name, deque()).append(payload)

    def issue(self, effect: Any) -> Command | None:
        """Turn an effect that the running task awaits into a command; None if the stride has answered it."""
        loop = self._loop
        scope = loop.scope()
        scope.effects = ordinal = scope.effects + 1
        id_ = f"{scope.path}:{ordinal}"
        kind = effect.kind
        if kind == "activity":
            definition, options = effect.definition, effect.options
            args = definition.encode_arguments(effect.args, effect.kwargs, effect.name, self._max_bytes)
            if self.stride is not None and self.stride.answers(id_, effect, args):
                return None
            command = Command(
                id_, kind, effect.name, loop.time_us, Future(loop=loop), definition, options, effect.undoes
            )
            command.args = args
            if options.idempotency_key is not None:
                command.key = options.key_of(effect.args, effect.kwargs)
            self.issued.append(command)
            self.pending[id_] = command
            return command
        command = Command(id_, kind, effect.name, loop.time_us, Future(loop=loop))
        if kind == "child":
            self._start_child(command, effect)
        elif kind == "timer":
            self._set_timer(command, effect.args)
        else:
            self._wait_for_signal(command, effect.args)
        if not command.answered:
            self.pending[id_] = command
        return command

    def _start_child(self, command: Command, effect: Any) -> None:
        definition, options = effect.definition, effect.options
        run = self._loop.execution.run
        if run.depth >= MAX_DEPTH:
            raise ChildDepthError(definition.name, run.depth)
        input_ = definition.encode_arguments(
            effect.args, effect.kwargs or {}, path=effect.name, max_bytes=self._max_bytes
        )
        command.definition = definition
        command.undoes = effect.undoes
        command.child = ChildStart(
            run.id, command.id, definition, input_, options.namespace, options.attributes, options.key
        )
        command.child.generation = self._generations.get(command.id, 0)
        command.child.retried_us = self.retried_us
        command.child.belong_to(run.id, command.id, self._loop.time_us)
        command.args = input_
        if options.key is not None or options.namespace is not None or options.attributes is not None:
            said = {"id": options.key, "namespace": options.namespace, "attributes": options.attributes}
            command.args = f'{{"input":{input_},"options":{json.dumps(said)}}}'
        name, args, child_id = self.known.get(command.id, (None, None, None))
        if name == command.name and same(args, json.loads(fingerprint(command.args))):
            command.child.id = UUID(child_id)
        self.issued.append(command)

    def cancel_child(self, command: Command, reason: str) -> None:
        """Have the child of a command cancelled, if it runs as far as is known."""
        if not command.future.done() and not self._loop.closing:
            self._cancel_child(command, reason)

    def _cancel_child(self, command: Command, reason: str) -> None:
        self.given_up[command.id] = None
        if command.cancelled is not None:
            return
        command.cancelled = reason
        # What a replay cancels again was cancelled when it was first said: in the commit of what led to it. A run that
        # is retried may get here another way.
        execution = self._loop.execution
        if command.taken or execution.retry is not None or not execution.replaying:
            self._cancels.append(command)

    def cancel_children(self, reason: str) -> None:
        """Have every child cancelled that is under way."""
        for command in self.pending.values():
            if command.kind == "child":
                self._cancel_child(command, reason)

    def belong_to(self, run_id: UUID) -> None:
        """The run has become another: the children it waits for are to be started once more, as that one's."""
        for command in self.pending.values():
            if command.kind == "child":
                self._start_anew(command, run_id)

    def renew(self, command_id: str, run_id: UUID) -> None:
        """The child of a command has ended in vain: another is to be started in its place, now or later."""
        self._generations[command_id] = generation = self._generations.get(command_id, 0) + 1
        self.known.pop(command_id, None)
        command = self.pending.get(command_id)
        if command is not None and command.kind == "child":
            command.child.generation = generation
            self._start_anew(command, run_id)

    def _start_anew(self, command: Command, run_id: UUID) -> None:
        command.child.belong_to(run_id, command.id, command.issued_us)
        if command.cancelled is not None and command not in self._cancels and not self._loop.execution.replaying:
            self._cancels.append(command)

    def postpone(self, elapsed_us: int) -> None:
        """Have all durations end later: the run was at a halt for so long. Instants stay what they are."""
        for _, _, command in self._timers:
            if not command.args.startswith('["'):
                command.due_us = min(command.due_us + elapsed_us, LAST_US)
                command.issued_us += elapsed_us
                if command.handle is not None:
                    command.handle.postpone(elapsed_us)
        self._timers = [(command.due_us or 0, serial, command) for _, serial, command in self._timers]
        heapq.heapify(self._timers)

    def start_timer(self, delay_us: int, handle: TimerHandle) -> Command:
        """Turn ``loop.call_later`` into a command."""
        scope = self._loop.scope()
        scope.effects += 1
        command = Command(f"{scope.path}:{scope.effects}", "timer", None, self._loop.time_us)
        command.handle = handle
        self._set_timer(command, delay_us)
        self.pending[command.id] = command
        return command

    def _set_timer(self, command: Command, due: int | datetime) -> None:
        if isinstance(due, datetime):
            due_us = (due - _EPOCH) // timedelta(microseconds=1)
            command.args = f'["{due.isoformat()}"]'
        else:
            due_us = self._loop.time_us + due
            command.args = f"[{due / 1e6!r}]"
        command.due_us = min(due_us, LAST_US)
        self._loop.serial += 1
        heapq.heappush(self._timers, (command.due_us, self._loop.serial, command))

    def _wait_for_signal(self, command: Command, timeout_us: int | None) -> None:
        kept = self._mailbox.get(command.name)
        if kept:
            command.answered = True
            payload = kept.popleft()
            if not kept:
                del self._mailbox[command.name]
            self.hand_over(command, payload)
            return
        if timeout_us is None:
            command.args = "[]"
        else:
            self._set_timer(command, timeout_us)
        self._waiters.setdefault(command.name, deque()).append(command)

    def abandon(self, command: Command) -> None:
        """Forget a command whose result nobody waits for any more."""
        if command.answered or self._loop.closing:
            return
        command.answered = True
        self.pending.pop(command.id, None)
        if command.kind == "signal":
            self.leave_line(command)
        elif command.kind == "child":
            if command.taken or self._loop.execution.retry is not None:
                self._cancel_child(command, "its parent does not wait for it any more")
            self.given_up[command.id] = None
        elif command.taken:
            self._abandoned.append(command)

    def abandon_all(self, state: str) -> None:
        """Forget everything that is open: the run has ended in that state.

        A child that was started on its own account outlives a run that was not cancelled. Of a run that failed all
        children do: what they come to is there when the run is retried.
        """
        for command in list(self.pending.values()):
            if state == "cancelled":
                command.detached = False
            if command.kind == "child" and (command.detached or state == "failed"):
                self.settle(command)
            else:
                self.abandon(command)

    def kept(self) -> tuple[tuple[str, str], ...]:
        """Return the signals nobody has asked for, as names and JSON texts; those of one name in order."""
        return tuple(
            (name, json.dumps(payload, ensure_ascii=False, separators=(",", ":")))
            for name, payloads in self._mailbox.items()
            for payload in payloads
        )

    def next_timer(self) -> Command | None:
        """Return the timer that is due first, or None. Ties go by creation."""
        timers = self._timers
        if not timers:
            return None
        while timers and timers[0][2].answered:
            heapq.heappop(timers)
        if len(timers) > 256 and len(timers) > 4 * len(self.pending):
            self._timers = timers = [entry for entry in timers if not entry[2].answered]
            heapq.heapify(timers)
        return timers[0][2] if timers else None

    def hand_over(self, command: Command, payload: Any) -> None:
        """Give a signal's payload to the one that waits for it."""
        if command.future.done():
            return
        try:
            value = values.restore(payload, (self._definition.signals or {}).get(command.name))
        except Exception as exc:  # not of the declared type: whoever waits for it has to know
            command.future.set_exception(exc)
        else:
            command.future.set_result(value)

    def leave_line(self, command: Command) -> None:
        """Stop waiting for a signal."""
        waiters = self._waiters[command.name]
        waiters.remove(command)
        if not waiters:
            del self._waiters[command.name]
