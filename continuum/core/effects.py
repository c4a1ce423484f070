"""What workflow code awaits: activities, children, timers, signals."""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from typing import Any

from continuum.core.durations import seconds
from continuum.core.loop import DeterministicLoop
from continuum.core.releasing import Released
from continuum.exceptions import NotInWorkflowError

__all__ = [
    "Bound",
    "Compensation",
    "Effect",
    "current_execution",
    "in_workflow",
    "sleep",
    "sleep_until",
    "wait_signal",
]


def in_workflow(loop: Any = None) -> bool:
    """Tell whether workflow code is running right now in this thread."""
    return type(loop or _get_running_loop()) is DeterministicLoop


def current_execution(caller: str) -> Any:
    """Return the execution whose code is running, or complain on behalf of ``caller``."""
    loop = _get_running_loop()
    if type(loop) is not DeterministicLoop:
        raise NotInWorkflowError(
            f"{caller}() works inside a workflow only; a run of one is started with continuum.start(...), and the "
            "plain function of an activity or workflow is run with .call(...)"
        )
    return loop.execution


class Compensation:
    """How an effect is undone, should it have succeeded.

    Attributes:
        undo: a :class:`Bound` call, or what makes one of the effect's result.
        command_id: the command to undo; None until it has succeeded.
        result: what the effect returned.
        taken: it was begun. No compensation is begun twice.
    """

    __slots__ = ("command_id", "result", "taken", "undo")

    def __init__(self, undo: Any) -> None:
        self.undo = undo
        self.command_id: str | None = None
        self.result: Any = None
        self.taken = False

    def effect(self) -> Effect:
        """Make the effect that undoes."""
        bound = self.undo if isinstance(self.undo, Bound) else self.undo(self.result)
        if not isinstance(bound, Bound):
            raise TypeError(f"a compensation must be made with .bind(...), which {bound!r} is not")
        effect = bound.effect()
        effect.undoes = self.command_id
        return effect


class Effect(Coroutine[Any, Any, Any]):
    """Something a workflow asks for: an activity, a child, a timer, a signal. It starts when awaited or made a task.

    A coroutine like any other, so that ``create_task``, ``gather`` and ``wait_for`` take it. It can be awaited once.
    """

    __slots__ = (
        "__weakref__",
        "_driver",
        "args",
        "compensation",
        "definition",
        "execution",
        "kind",
        "kwargs",
        "name",
        "options",
        "serial",
        "undoes",
    )

    def __init__(
        self,
        execution: Any,
        kind: str,
        name: str | None,
        definition: Any = None,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
        options: Any = None,
    ) -> None:
        self.execution = execution
        self.kind = kind
        self.name = name
        self.definition = definition
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.compensation: Compensation | None = None
        self.undoes: str | None = None
        loop = execution.loop
        loop.serial = self.serial = loop.serial + 1
        self._driver: Generator[Any, Any, Any] | None = None

    def compensated_by(self, undo: Bound | Callable[[Any], Bound]) -> Effect:
        """Say what undoes this effect: ``charge_card(...).compensated_by(refund.bind(...))``.

        Nothing happens until :func:`compensate`, :func:`compensate_all` or the end of a :func:`saga` asks for it, and
        then only if the effect has succeeded.

        Args:
            undo: a call that is not made yet, from ``.bind(...)`` of an activity or a workflow; or a function that
                makes one of the effect's result.

        Returns:
            This effect, to be awaited.

        Raises:
            TypeError: it is neither.
            RuntimeError: the effect has been awaited before.
        """
        # An activity can be called as well, but makes a call of its own. Found here, and not when it is needed.
        if not isinstance(undo, Bound) and (not callable(undo) or hasattr(undo, "bind") or iscoroutinefunction(undo)):
            raise TypeError(f"undo must be made with .bind(...), or be a function that does so, not {undo!r}")
        if self.kind not in ("activity", "child"):
            raise TypeError(f"a {self.kind} has no effect to compensate for")
        if self._driver is not None:
            raise RuntimeError(f"{self!r} has been awaited before: say what compensates for it first")
        self.compensation = Compensation(undo)
        return self

    def __hash__(self) -> int:
        return self.serial

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._driver is not None:
            raise RuntimeError(f"{self!r} has been awaited before; call it again to run it again")
        self._driver = driver = self._drive()
        return driver

    def _drive(self) -> Generator[Any, Any, Any]:
        execution = self.execution
        if execution.loop.closing:
            yield from self._refused()
        command = execution.issue(self)
        if command is None:
            return execution.asks.stride.value
        try:
            value = yield from command.future
        finally:
            if not command.answered:
                execution.abandon(command)
            elif self.compensation is not None and not execution.closing:
                execution.sagas.settled(self.compensation, command)
        return value

    def _refused(self) -> Generator[Any, Any, None]:
        # The run is being released: nothing it asks for counts. Code that goes on for ever all the same is left.
        loop = self.execution.loop
        loop.refused += 1
        if loop.refused < 1000:
            raise Released
        yield

    def send(self, value: Any) -> Any:
        return (self._driver or self.__await__()).send(value)

    def throw(self, *exc_info: Any) -> Any:
        try:
            return (self._driver or self.__await__()).throw(*exc_info)
        finally:
            del exc_info  # or the exception, its traceback and this frame would keep each other alive

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>" if self.name else f"<{self.kind}>"


@dataclass(frozen=True, slots=True)
class Bound:
    """A call of an activity or a workflow that is not made yet; what ``.bind(...)`` returns.

    Attributes:
        make: makes the effect.
        name: of the activity or workflow.
        args, kwargs: its arguments, which fit its signature.
    """

    make: Callable[[tuple[Any, ...], dict[str, Any]], Effect]
    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def effect(self) -> Effect:
        """Make the call, as an effect to await."""
        return self.make(self.args, dict(self.kwargs))


# -- waiting ----------------------------------------------------------------------------------------------------


def sleep(duration: float | timedelta) -> Effect:
    """Wait for a duration, durably: seconds (int or float) or a timedelta.

    The run may move between processes meanwhile. Worth the same as ``asyncio.sleep``.
    """
    return Effect(current_execution("sleep"), "timer", None, args=round(seconds(duration, "duration") * 1e6))


def sleep_until(when: datetime) -> Effect:
    """Wait until an instant, durably.

    Args:
        when: an aware datetime. One in the past is over at once.

    Raises:
        TypeError: not a datetime.
        ValueError: a naive datetime, whose instant would be a guess.
    """
    execution = current_execution("sleep_until")
    if not isinstance(when, datetime):
        raise TypeError(f"when must be a datetime, not {when!r}")
    if when.tzinfo is None or when.utcoffset() is None:
        raise ValueError(f"when must be an aware datetime, not {when!r}")
    return Effect(execution, "timer", None, args=when.astimezone(UTC))


def wait_signal(name: str, timeout: float | timedelta | None = None) -> Effect:
    """Wait for the next signal of a name and return its payload.

    Signals that arrived before anybody waited are kept, in order. Several waiters are served in the order they began.

    Args:
        name: the signal's name.
        timeout: seconds or timedelta; None waits for ever.

    Raises:
        SignalTimeoutError: none came in time. It is a ``TimeoutError`` too.
        ValueError: the workflow declares its signals, and this is none of them.
    """
    execution = current_execution("wait_signal")
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a signal must be a non-empty string, not {name!r}")
    declared = execution.definition.signals
    if declared is not None and name not in declared:
        known = ", ".join(sorted(declared))
        raise ValueError(f"signal {name!r} is not declared by {execution.definition.name}, which knows {known}")
    timeout_us = None if timeout is None else round(seconds(timeout, "timeout") * 1e6)
    return Effect(execution, "signal", name, args=timeout_us)
