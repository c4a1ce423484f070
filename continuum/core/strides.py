"""Delivering a history, a stretch of it at once where that is possible.

Around what an event does to the code there is a good deal that is the same for each: the run's loop has to take the
place of the worker's, the watchdog to be told, and afterwards there is to be seen what the code has come to. In a
stride all that is done once around many events. They are the plain ones: nobody's code but the run's own has to be
called for them, as it is to restore a value of a class, and they fit beyond doubt. Every other event, and every doubt,
ends the stride before that event, which then is delivered by itself.

The plainest of all is the result of what the code asks for this very moment, with nothing else left to do: it is
answered on the spot (:meth:`Stride.answers`), without a command, without a future, and without a turn of the loop.
"""

from __future__ import annotations

import sys
from asyncio import Future
from types import FrameType
from typing import Any

from continuum import values
from continuum.core import decisions, resuming
from continuum.core.awaiting import awaited_by_its_task
from continuum.core.effects import Effect
from continuum.core.history import INLINE_ARGUMENTS, WALKED_PAST, Event, EventType, fingerprint
from continuum.core.loop import current_task

__all__ = ["Stride", "deliver"]

_COMPLETED, _FIRED = EventType.ACTIVITY_COMPLETED, EventType.TIMER_FIRED
_PLAIN = frozenset({_COMPLETED, _FIRED})
_scan = values.scan
# Methods of futures, which are looked up anew at each call when they are asked of a future.
_done, _set_result = Future.done, Future.set_result
_AWAIT = Effect._drive.__code__
# In place of the value of an event that has to be looked at more closely.
_UNCLEAR = object()


def deliver(run: Any, most: int) -> int:
    """Deliver the next event of a run's history, and at most so many in all; returns how many it were.

    Raises:
        ReplayDriftError: one of them does not fit.
    """
    history = run._history
    before = len(history)
    if before > 1 and history[0].type in _PLAIN and run.retry is None and _may_be_plain(run, history[0]):
        stride = run.asks.stride = Stride(run, most)
        try:
            run.drain(stride.live_through)
        finally:
            run.asks.stride = None
    if len(history) == before:
        _deliver(run, history.popleft())
    return before - len(history)


def _deliver(run: Any, event: Event) -> None:
    if event.type in WALKED_PAST:
        decisions.go_past(run, event)
        return
    run.met(event)
    if run.retry is None:
        run.apply(event)
    else:
        resuming.live_through_again(run, run.retry, event)


def _may_be_plain(run: Any, event: Event) -> bool:
    """Tell whether a stride is worth beginning. What a function returns is found out here, outside the run's loop."""
    command = run.pending.get(event.command_id)
    if command is None:
        return False
    try:
        return command.definition is None or command.definition.returns_plain
    except Exception:
        return False  # of no use as an annotation: it is said where the result is restored


class Stride:
    """The plain events that come next in the history of a run, at most so many.

    The last event of the history is never one of them: what the code does after it is no replay.
    """

    __slots__ = ("_history", "_last", "_left", "_loop", "_ready", "_run", "_watch", "value")

    def __init__(self, run: Any, most: int) -> None:
        self._run = run
        self._loop = run.loop
        self._ready = run.loop._ready
        self._watch = run.loop.watch
        self._history = run._history
        self._left = most
        self._last = run._marks + 1

    def live_through(self) -> None:
        """Deliver them, from within the run's loop."""
        run, loop, history, watch = self._run, self._loop, self._history, self._watch
        root, run_ready = run._root, loop.run_ready
        pending, issued = run.pending, run.asks.issued
        while self._left > 0 and run._unmet > self._last:
            _, type_, command_id, name, data, time_us = event = history.popleft()
            command = pending.get(command_id)
            value = _UNCLEAR
            if command is not None and command.name == name:
                kind = command.kind
                if kind == "activity" and type_ == _COMPLETED:
                    value = _result(command.definition, command.args, data)
                elif kind == "timer" and type_ == _FIRED and command.handle is None:
                    value = None if data == f'{{"args":{command.args}}}' else _UNCLEAR
            if value is _UNCLEAR:
                history.appendleft(event)
                return
            self._left -= 1
            run._unmet -= 1
            if time_us > loop.time_us:
                loop.time_us = time_us
            del pending[command_id]
            command.answered = True
            if issued and issued[-1] is command:  # whoever takes what was asked for would leave it out
                issued.pop()
            future = command.future
            if not _done(future):  # else it was cancelled a moment ago
                _set_result(future, value)
            watch.serial += 1  # the watchdog's measure is how long the code takes over one event
            run_ready()
            if watch.raised or _done(root) or run.drift is not None or loop.violation is not None:
                return

    def answers(self, command_id: str, effect: Any, args: str) -> bool:
        """Answer what the code asks for now, with ``value``, if that is what happens next; returns whether it is.

        It is what happens next if the history says so, if nothing else in the run is ready to go on, and if the code
        does nothing before its task has got the result: then the task would be put to sleep only to be woken at once.

        Args:
            command_id: the identity of what is asked for.
            effect: the call of an activity that is asked for, from within whose ``await`` this is called.
            args: its arguments as JSON text.
        """
        run, history = self._run, self._history
        if self._left <= 0 or run._unmet <= self._last or self._ready:
            return False
        _, type_, answered_id, name, data, time_us = history[0]
        if answered_id != command_id or type_ != _COMPLETED or name != effect.name:
            return False
        if effect.compensation is not None or effect.options.idempotency_key is not None:
            return False
        loop, watch = self._loop, self._watch
        if watch.raised or run.drift is not None or loop.violation is not None:
            return False
        task = current_task(loop)
        if task is None or task._must_cancel or not awaited_by_its_task(_awaiting(sys._getframe(2))):
            return False
        value = _result(effect.definition, args, data)
        if value is _UNCLEAR:
            return False
        history.popleft()
        self._left -= 1
        run._unmet -= 1
        if time_us > loop.time_us:
            loop.time_us = time_us
        watch.serial += 1  # for the watchdog, as above
        self.value = value
        return True


def _awaiting(frame: FrameType | None) -> FrameType | None:
    """Return the frame that awaits the effect in whose ``await`` this one is."""
    while frame is not None and frame.f_code is not _AWAIT:
        frame = frame.f_back
    return None if frame is None else frame.f_back


def _result(definition: Any, args: str, data: str) -> Any:
    """Return the result that an event holds, if it is certain to be that of a call and nothing but plain JSON."""
    if len(args) > INLINE_ARGUMENTS:
        args = fingerprint(args)
    # Word for word as the engine writes it for a first attempt, of which a number and the result are all that is told
    # besides. What a function returns is not looked into here, but where a stride begins.
    asked = f'{{"args":{args},"took":'
    if not definition.known_plain or not data.startswith(asked):
        return _UNCLEAR
    after = data.find('"', len(asked))
    if not data.startswith('"result":', after):
        return _UNCLEAR
    try:
        value, end = _scan(data, after + 9)
    except (StopIteration, ValueError, RecursionError):
        return _UNCLEAR
    if data[end:] != "}" or ((type(value) is dict or type(value) is list) and '"~' in data[after:]):
        return _UNCLEAR
    return value
