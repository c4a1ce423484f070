"""Something that costs more the more there is, and that is not allowed to take all the time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["Budget"]

T = TypeVar("T")


class Budget:
    """Lets something be done for a share of the time: what took long has to wait long before it is done again.

    Args:
        share: of the time, between 0 and 1.
        longest: seconds to wait at most: it may have taken long because the machine, or the server, was busy.
    """

    def __init__(self, share: float, longest: float) -> None:
        self._share = share
        self._longest = longest
        self._not_before = 0.0

    def allows(self) -> bool:
        """Tell whether it may be done now."""
        return self.wait() == 0

    def wait(self) -> float:
        """Return in how many seconds it may be done."""
        return max(0.0, self._not_before - time.monotonic())

    def reset(self) -> None:
        """Let it be done at once, whatever it has cost."""
        self._not_before = 0.0

    def charging(self, fn: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """Return a function that does what ``fn`` does, and charges for the time that takes when it succeeds."""

        async def charged(*arguments: object) -> T:
            began = time.monotonic()
            result = await fn(*arguments)
            now = time.monotonic()
            self._not_before = now + min((now - began) / self._share, self._longest)
            return result

        return charged
