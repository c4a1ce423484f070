"""Delivering a history, a stretch of it at once where that is possible.

Around what an event does to the code there is a good deal that is the same for each: the run's loop has to take the
place of the worker's, the watchdog to be told, and afterwards there is to be seen what the code has come to. In a
stride all that is done once around many events. They are the plain ones: nobody's code but the run's own has to be
called for them, as it is to restore a value of a class, and they fit beyond doubt. Every other event, and every doubt,
ends the stride before that event, which then is delivered by itself.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import Any

from continuum import values
from continuum.core import decisions, resuming
from continuum.core.commands import Command
from continuum.core.history import INLINE_ARGUMENTS, WALKED_PAST, Event, EventType, fingerprint

__all__ = ["deliver"]

_COMPLETED, _FIRED = EventType.ACTIVITY_COMPLETED, EventType.TIMER_FIRED
_PLAIN = frozenset({_COMPLETED, _FIRED})
_scan = values.scan
# Methods of futures, which are looked up anew at each call when they are asked of a future.
_done, _set_result = Future.done, Future.set_result
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
        run.drain(_stride(run, most))
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


def _stride(run: Any, most: int) -> Callable[[], None]:
    """Return what delivers the plain events that come next, at most so many, from within the run's loop.

    The last event of the history is never one of them: what the code does after it is no replay.
    """

    def live_through() -> None:
        loop, history, root = run.loop, run._history, run._root
        pending, issued = run.pending, run.asks.issued
        watch, run_ready = loop.watch, loop.run_ready
        last = run._marks + 1
        for _ in range(most):
            if run._unmet <= last:
                return
            _, type_, command_id, name, data, time_us = event = history.popleft()
            command = pending.get(command_id)
            value = _UNCLEAR
            if command is not None and command.name == name:
                kind = command.kind
                if kind == "activity" and type_ == _COMPLETED:
                    value = _result(command, data)
                elif kind == "timer" and type_ == _FIRED and command.handle is None:
                    value = None if data == f'{{"args":{command.args}}}' else _UNCLEAR
            if value is _UNCLEAR:
                history.appendleft(event)
                return
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

    return live_through


def _result(command: Command, data: str) -> Any:
    """Return the result that an event holds, if it is certain to be that of a command and nothing but plain JSON."""
    args = command.args
    if len(args) > INLINE_ARGUMENTS:
        args = fingerprint(args)
    # Word for word as the engine writes it for a first attempt. Arguments that hold such a word themselves are cut in
    # two here, and so do not fit. What a function returns is not looked into here, but where a stride begins.
    asked, _, rest = data.partition(',"took":')
    took, _, result = rest.partition(',"result":')
    if asked != f'{{"args":{args}' or not took.isdigit() or not command.definition.__dict__.get("returns_plain"):
        return _UNCLEAR
    try:
        value, end = _scan(result, 0)
    except (StopIteration, ValueError, RecursionError):
        return _UNCLEAR
    if result[end:] != "}" or ((type(value) is dict or type(value) is list) and '"~' in result):
        return _UNCLEAR
    return value
