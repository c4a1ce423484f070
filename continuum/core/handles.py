"""What a run's loop returns for a callback that it has scheduled, now or for later."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continuum.core.loop import DeterministicLoop

__all__ = ["Handle", "TimerHandle"]


class Handle:
    """A scheduled callback; what ``call_soon`` returns. Whoever makes one says what is to be called, and with what."""

    __slots__ = ("args", "callback", "context")

    callback: Callable[..., Any] | None  # None once it is not going to be called any more
    args: tuple[Any, ...]
    context: Context

    def cancel(self) -> None:
        # What is not going to be called is let go, as asyncio does it: a callback often leads back to its handle.
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None


class TimerHandle(Handle):
    """A durable timer as asyncio sees it. Cancelling it abandons the command."""

    __slots__ = ("_loop", "_when", "command")

    def __init__(
        self,
        loop: DeterministicLoop,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self._loop = loop
        self._when = when
        self.command: Any = None

    def when(self) -> float:
        return self._when

    def postpone(self, elapsed_us: int) -> None:
        self._when += elapsed_us / 1e6

    def cancel(self) -> None:
        if self.callback is not None:
            super().cancel()
            command, self.command = self.command, None
            if command is not None:
                command.handle = None
                if not self._loop.closing:
                    self._loop.execution.abandon(command)
