"""Sagas: undoing what has succeeded when what follows fails.

A compensation is an activity or a child like any other: journaled, retried by its own policy, replayed. What is special
is that each is begun once, the latest first, and that a cancellation waits until those under way are done.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from continuum.core.effects import Compensation, Effect, current_execution
from continuum.core.facts import logger
from continuum.core.releasing import ContinueAsNew, Released

__all__ = ["Sagas", "compensate", "compensate_all", "saga"]

_frame: ContextVar[list[Compensation] | None] = ContextVar("continuum_saga", default=None)


class Sagas:
    """The compensations of one run: of effects that have succeeded, in the order they did."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open: list[Compensation] = []

    def succeeded(self, compensation: Compensation, command_id: str, result: Any) -> None:
        """An effect with a compensation has succeeded."""
        compensation.command_id = command_id
        compensation.result = result
        self.open.append(compensation)
        frame = _frame.get()
        if frame is not None:
            frame.append(compensation)

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
    result, interrupted = await _shielded(_undo(effect.compensation))
    if isinstance(result, Exception):
        raise result
    if interrupted is not None:
        raise interrupted
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
    errors, interrupted = await _shielded(_undo_all(execution, list(execution.sagas.open), parallel))
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
        self._inside: list[Compensation] = []
        self._outside: list[Compensation] | None = None
        self._token: Token[Any] | None = None

    async def __aenter__(self) -> saga:
        current_execution("saga")
        if self._token is not None:
            raise RuntimeError("a saga() can be entered once")
        self._outside = _frame.get()
        self._token = _frame.set(self._inside)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self._token is not None
        _frame.reset(self._token)
        execution = current_execution("saga")
        if error is None or isinstance(error, Released | GeneratorExit | ContinueAsNew):
            if self._outside is not None:
                self._outside += self._inside
        elif not execution.closing:
            await _shielded(_undo_all(execution, self._inside, self._parallel))
        return False


async def _undo_all(execution: Any, compensations: list[Compensation], parallel: bool) -> list[Exception]:
    taken = [each for each in reversed(compensations) if execution.sagas.take(each)]
    if parallel:
        results = await asyncio.gather(*map(_undo, taken))
    else:
        results = [await _undo(each) for each in taken]
    return [result for result in results if isinstance(result, Exception)]


async def _undo(compensation: Compensation) -> Any:
    """Undo one effect; returns the error where that fails."""
    try:
        return await compensation.effect()
    except Exception as error:
        logger.error("what %s did is not undone: %s", compensation.command_id, error)
        return error


async def _shielded(coroutine: Any) -> tuple[Any, asyncio.CancelledError | None]:
    """Await something to its end whatever happens to the task meanwhile; returns also what wanted to interrupt it."""
    task = asyncio.get_running_loop().create_task(coroutine)
    interrupted = None
    while True:
        try:
            return await asyncio.shield(task), interrupted
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            interrupted = error
