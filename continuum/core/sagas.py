"""Sagas: undoing what has succeeded when what follows fails.

A compensation is an activity or a child like any other: journaled, retried by its own policy, replayed. What is special
is that each is begun once, the latest first, and that a cancellation waits until those under way are done.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from continuum.core.commands import Command
from continuum.core.effects import Compensation, Effect, current_execution
from continuum.core.facts import logger
from continuum.core.outcomes import continuation_of

__all__ = ["Sagas", "compensate", "compensate_all", "saga"]

_innermost: ContextVar[saga | None] = ContextVar("continuum_saga", default=None)


class Sagas:
    """The compensations of one run: of effects that have succeeded, in the order they did."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open: list[Compensation] = []

    def settled(self, compensation: Compensation, command: Command) -> None:
        """An effect with a compensation has come to an end; if it has succeeded, it can be undone."""
        future = command.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return
        compensation.command_id = command.id
        compensation.result = future.result()
        self.open.append(compensation)
        frame = _innermost.get()
        while frame is not None and frame.left:  # by a task that was begun inside and goes on
            frame = frame.outside
        if frame is not None:
            frame.inside.append(compensation)

    def take(self, compensation: Compensation) -> bool:
        """Tell whether a compensation is to be begun now. It is said once."""
        if compensation.taken or compensation.command_id is None:
            return False
        compensation.taken = True
        self.open.remove(compensation)
        return True


async def compensate(effect: Effect) -> Any:
    """Undo one effect, if it has succeeded and nothing has undone it yet.

    Args:
        effect: what ``compensated_by`` returned.

    Returns:
        What the compensation returned; None where there was nothing to undo.

    Raises:
        ActivityError, ChildError: the compensation failed for good. It is not tried again.
        ValueError: nothing was said to compensate for the effect.
        asyncio.CancelledError: the run was cancelled meanwhile; raised once the compensation is done.
    """
    execution = current_execution("compensate")
    if not isinstance(effect, Effect):
        raise TypeError(f"compensate() takes the effect that compensated_by() returned, not {effect!r}")
    if effect.compensation is None:
        raise ValueError(f"{effect!r} has no compensation: say .compensated_by(...) before it is awaited")
    if not execution.sagas.take(effect.compensation):
        return None
    result, interrupted = await _shielded(execution, _undo(effect.compensation))
    failure = result if isinstance(result, Exception) else None
    if interrupted is not None:
        raise interrupted from failure
    if failure is not None:
        raise failure
    return result


async def compensate_all(parallel: bool = False) -> list[Exception]:
    """Undo everything that has succeeded in this run and is not undone yet, the latest first.

    Args:
        parallel: all at the same time instead.

    Returns:
        The errors of those compensations that failed for good, which are in the history too; empty when all is undone.

    Raises:
        asyncio.CancelledError: the run was cancelled meanwhile; raised once all compensations are done.
    """
    execution = current_execution("compensate_all")
    errors, interrupted = await _shielded(execution, _undo_all(execution, execution.sagas.open, parallel))
    if interrupted is not None:
        raise interrupted
    return errors


class saga:
    """``async with saga():`` undoes what succeeded inside when an exception, or a cancellation, leaves the block.

    The exception goes on as it was. A compensation that fails for good is recorded, and the others still run. Sagas may
    be nested: what an inner one keeps, an outer one may still undo.

    Args:
        parallel: undo everything at the same time, instead of the latest first.
    """

    def __init__(self, parallel: bool = False) -> None:
        self._parallel = parallel
        self._execution: Any = None
        self._token: Token[Any] | None = None
        self.inside: list[Compensation] = []
        self.outside: saga | None = None
        self.left = False

    async def __aenter__(self) -> saga:
        self._execution = current_execution("saga")
        if self._token is not None:
            raise RuntimeError("a saga() can be entered once")
        self.outside = _innermost.get()
        self._token = _innermost.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        execution = self._execution
        if execution.closing:
            return False
        assert self._token is not None
        with suppress(ValueError):  # an async generator may end in another task than it began in
            _innermost.reset(self._token)
        if error is not None and not isinstance(error, GeneratorExit) and continuation_of(error) is None:
            reason = execution.cancel_reason
            _, interrupted = await _shielded(execution, _undo_all(execution, self.inside, self._parallel))
            if interrupted is not None and reason is None:
                execution.cancel_again()
        elif self.outside is not None:
            self.outside.inside += self.inside
        self.left = True
        return False


async def _undo_all(execution: Any, compensations: list[Compensation], parallel: bool) -> list[Exception]:
    results = []
    # Once more from the end after each: what is still under way elsewhere may have succeeded meanwhile.
    while open_ := [each for each in reversed(compensations) if not each.taken]:
        taken = [each for each in (open_ if parallel else open_[:1]) if execution.sagas.take(each)]
        results += await asyncio.gather(*map(_undo, taken)) if parallel else [await _undo(taken[0])]
    return [result for result in results if isinstance(result, Exception)]


async def _undo(compensation: Compensation) -> Any:
    """Undo one effect; returns the error where that fails."""
    try:
        return await compensation.effect()
    except Exception as error:
        logger.error("what %s did is not undone: %s", compensation.command_id, error)
        return error


async def _shielded(execution: Any, coroutine: Any) -> tuple[Any, asyncio.CancelledError | None]:
    """Await something to its end whatever happens to the task meanwhile; returns also what wanted to interrupt it."""
    if execution.closing:
        coroutine.close()
        await Effect(execution, "timer", None, args=0)  # which is refused
    task = execution.loop.create_task(coroutine)
    interrupted = None
    while True:
        try:
            return await asyncio.shield(task), interrupted
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            interrupted = error
