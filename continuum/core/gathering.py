"""Waiting for several things, in an order that is the same in every replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from datetime import timedelta
from typing import Any

from continuum.core.durations import seconds

__all__ = ["as_completed", "wait"]


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
