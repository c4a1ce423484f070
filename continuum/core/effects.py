"""What workflow code may say: effects to await, and the deterministic stand-ins for clock, randomness and logging."""

from __future__ import annotations

import asyncio
import logging
from asyncio import _get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from continuum.core import decisions
from continuum.core.durations import seconds
from continuum.core.loop import DeterministicLoop
from continuum.core.releasing import Released
from continuum.exceptions import NotInWorkflowError

__all__ = [
    "Effect",
    "RunInfo",
    "as_completed",
    "in_workflow",
    "logger",
    "now",
    "patched",
    "random",
    "run_info",
    "set_progress",
    "side_effect",
    "sleep",
    "sleep_until",
    "today",
    "uuid4",
    "wait",
    "wait_signal",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def in_workflow(loop: Any = None) -> bool:
    """Tell whether workflow code is running right now in this thread."""
    return type(loop or _get_running_loop()) is DeterministicLoop


def _execution(caller: str) -> Any:
    loop = _get_running_loop()
    if type(loop) is not DeterministicLoop:
        raise NotInWorkflowError(
            f"{caller}() works inside a workflow only; a run of one is started with continuum.start(...), and the "
            "plain function of an activity or workflow is run with .call(...)"
        )
    return loop.execution


class Effect(Coroutine[Any, Any, Any]):
    """Something a workflow asks for: an activity, a timer, a signal. It starts when it is awaited or made a task.

    A coroutine like any other, so that ``create_task``, ``gather`` and ``wait_for`` take it. It can be awaited once.
    """

    __slots__ = (
        "__weakref__",
        "_driver",
        "args",
        "definition",
        "execution",
        "kind",
        "kwargs",
        "name",
        "options",
        "serial",
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
        self.serial = execution.loop.next_serial()
        self._driver: Generator[Any, Any, Any] | None = None

    def __hash__(self) -> int:
        return self.serial

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._driver is not None:
            raise RuntimeError(f"{self!r} has been awaited before; call it again to run it again")
        self._driver = driver = self._drive()
        return driver

    def _drive(self) -> Generator[Any, Any, Any]:
        execution = self.execution
        if execution.closing:
            # The run is being released: nothing it asks for counts. Code that goes on for ever all the same is left.
            execution.loop.refused += 1
            if execution.loop.refused < 1000:
                raise Released
            yield
        command = execution.issue(self)
        try:
            return (yield from command.future)
        finally:
            if not command.answered:
                execution.abandon(command)

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


# -- waiting ----------------------------------------------------------------------------------------------------


def sleep(duration: float | timedelta) -> Effect:
    """Wait for a duration, durably: seconds (int or float) or a timedelta.

    The run may move between processes meanwhile. Worth the same as ``asyncio.sleep``.
    """
    return Effect(_execution("sleep"), "timer", None, args=round(seconds(duration, "duration") * 1e6))


def sleep_until(when: datetime) -> Effect:
    """Wait until an instant, durably.

    Args:
        when: an aware datetime. One in the past is over at once.

    Raises:
        TypeError: not a datetime.
        ValueError: a naive datetime, whose instant would be a guess.
    """
    execution = _execution("sleep_until")
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
    execution = _execution("wait_signal")
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a signal must be a non-empty string, not {name!r}")
    declared = execution.definition.signals
    if declared is not None and name not in declared:
        known = ", ".join(sorted(declared))
        raise ValueError(f"signal {name!r} is not declared by {execution.definition.name}, which knows {known}")
    timeout_us = None if timeout is None else round(seconds(timeout, "timeout") * 1e6)
    return Effect(execution, "signal", name, args=timeout_us)


async def wait(
    aws: Iterable[Any], *, timeout: float | timedelta | None = None, return_when: str = asyncio.ALL_COMPLETED
) -> tuple[list[Any], list[Any]]:
    """Like ``asyncio.wait``, in a fixed order.

    Args:
        aws: tasks, futures, effects or coroutines.
        timeout: seconds or timedelta; None waits for ever.
        return_when: asyncio's ``FIRST_COMPLETED``, ``FIRST_EXCEPTION`` or ``ALL_COMPLETED``.

    Returns:
        tuple: the done ones in order of completion, the pending ones in the order given.
    """
    futures = list(dict.fromkeys(asyncio.ensure_future(aw) for aw in aws))
    order = [future for future in futures if future.done()]
    for future in futures:
        if not future.done():
            future.add_done_callback(order.append)
    try:
        done, _ = await asyncio.wait(
            futures, timeout=None if timeout is None else seconds(timeout, "timeout"), return_when=return_when
        )
    finally:
        for future in futures:
            future.remove_done_callback(order.append)
    return [f for f in order if f in done], [f for f in futures if f not in done]


def as_completed(aws: Iterable[Any], *, timeout: float | timedelta | None = None) -> _Completions:
    """Like ``asyncio.as_completed``, in order of completion, whatever the order in memory.

    Iterate with ``for`` (awaiting each item) or with ``async for`` (which gives the finished tasks).

    Raises:
        TimeoutError: not all were done in time.
    """
    return _Completions(
        list(dict.fromkeys(asyncio.ensure_future(aw) for aw in aws)),
        None if timeout is None else seconds(timeout, "timeout"),
    )


class _Completions:
    def __init__(self, futures: list[Any], timeout: float | None) -> None:
        self._done: asyncio.Queue[Any] = asyncio.Queue()
        self._left = len(futures)
        self._open = set(futures)
        self._timer = None
        if timeout is not None and futures:
            self._timer = asyncio.get_running_loop().call_later(timeout, self._expire)
        for future in futures:
            future.add_done_callback(self._finish)

    def _finish(self, future: Any) -> None:
        self._open.discard(future)
        self._done.put_nowait(future)
        if not self._open and self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        for future in self._open:
            future.remove_done_callback(self._finish)
            self._done.put_nowait(None)

    async def _next(self) -> Any:
        future = await self._done.get()
        if future is None:
            raise TimeoutError
        return future

    async def _next_result(self) -> Any:
        return (await self._next()).result()

    def __iter__(self) -> Iterable[Awaitable[Any]]:  # type: ignore[misc]
        while self._left:
            self._left -= 1
            yield self._next_result()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self._left:
            self._left -= 1
            yield await self._next()


# -- clock, randomness, facts -----------------------------------------------------------------------------------


def now() -> datetime:
    """The deterministic clock: the time of what the run was told last, as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=_execution("now").loop.time_us)


def today() -> date:
    """The date of :func:`now`, in UTC."""
    return (_EPOCH + timedelta(microseconds=_execution("today").loop.time_us)).date()


def uuid4() -> UUID:
    """A random UUID that is the same in every replay."""
    return UUID(bytes=decisions.draw(_execution("uuid4"), 16), version=4)


def random() -> float:
    """A random float in [0, 1) that is the same in every replay."""
    return (int.from_bytes(decisions.draw(_execution("random"), 8), "big") >> 11) * 2.0**-53


def side_effect(fn: Callable[..., Any], *args: Any) -> Any:
    """Run a plain function once, journal what it returns, and return that in every replay.

    Args:
        fn: a quick function that may differ from call to call, such as one that reads a setting.
        args: its arguments.

    Returns:
        The value, as its return annotation says.

    Raises:
        ActivityError: ``fn`` raised; that is journaled as well.
    """
    return decisions.side_effect(_execution("side_effect"), fn, args)


def patched(name: str) -> bool:
    """Tell whether this run takes the new branch of a change to the workflow's code.

    False only when a history recorded without it is replayed past this place; True when execution gets here live.
    The first decision holds for the whole run.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a patch must be a non-empty string, not {name!r}")
    return decisions.patched(_execution("patched"), name)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Facts about the run whose code is running."""

    run_id: UUID
    workflow: str
    version: int
    namespace: str
    parent_run_id: UUID | None
    started_at: datetime
    replaying: bool


def run_info() -> RunInfo:
    """Return facts about the run. ``replaying`` is for diagnostics: code must not branch on it."""
    execution = _execution("run_info")
    run = execution.run
    return RunInfo(
        run.id,
        execution.definition.name,
        run.version,
        run.namespace,
        run.parent_run_id,
        _EPOCH + timedelta(microseconds=run.started_us),
        execution.replaying,
    )


def set_progress(value: Any) -> None:
    """Publish a value that ``get_run(id).progress`` shows while the run lives. It leaves no history.

    Raises:
        DurableValueError: the value cannot be stored.
    """
    _execution("set_progress").set_progress(value)


class _RunLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Logs once per run: silent while a history is replayed. Records carry ``run_id`` and ``workflow``."""

    def isEnabledFor(self, level: int) -> bool:
        loop = _get_running_loop()
        if type(loop) is DeterministicLoop and (loop.execution.replaying or loop.closing):
            return False
        return self.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        loop = _get_running_loop()
        if type(loop) is DeterministicLoop:
            execution = loop.execution
            extra = kwargs.setdefault("extra", {})
            extra.setdefault("run_id", str(execution.run.id))
            extra.setdefault("workflow", execution.definition.name)
        return msg, kwargs


#: A logger for workflow code.
logger = _RunLogger(logging.getLogger("continuum.workflow"), {})
