"""Retry policies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from continuum.core.durations import seconds

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how fast an activity is tried again.

    Args:
        max_attempts: attempts in all, the first included; at least 1.
        backoff: ``"exponential"`` multiplies the delay by ``factor`` after each attempt, ``"constant"`` keeps it.
        base: delay before the second attempt, in seconds (or a timedelta).
        factor: growth of the delay, at least 1.
        jitter: part of the delay that is random, from 0 (none) to 1 (anything between nothing and twice the delay).
        max_delay: longest delay, in seconds (or a timedelta).
        non_retryable: exception classes, or their names, that end the attempts at once. Subclasses count.
        horizon: seconds (or a timedelta) after the call beyond which no further attempt begins; None for no such limit.

    Raises:
        ValueError: a figure is out of range.
        TypeError: a figure is of the wrong type.
    """

    max_attempts: int = 1
    backoff: Literal["exponential", "constant"] = "exponential"
    base: float = 1.0
    factor: float = 2.0
    jitter: float = 0.0
    max_delay: float = 60.0
    non_retryable: tuple[type[BaseException] | str, ...] = ()
    horizon: float | None = None

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int:
            raise TypeError(f"Retry.max_attempts must be an int, not {self.max_attempts!r}")
        if self.max_attempts < 1:
            raise ValueError(f"Retry.max_attempts must be at least 1, not {self.max_attempts}")
        if self.backoff not in ("exponential", "constant"):
            raise ValueError(f"Retry.backoff must be 'exponential' or 'constant', not {self.backoff!r}")
        object.__setattr__(self, "base", seconds(self.base, "Retry.base"))
        object.__setattr__(self, "max_delay", seconds(self.max_delay, "Retry.max_delay"))
        if self.horizon is not None:
            object.__setattr__(self, "horizon", seconds(self.horizon, "Retry.horizon"))
        for name, low, high in (("factor", 1.0, float("inf")), ("jitter", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Retry.{name} must be a number, not {value!r}")
            if not low <= value <= high or value == float("inf"):
                raise ValueError(f"Retry.{name} must be between {low:g} and {high:g}, not {value!r}")
        entries = self.non_retryable
        if isinstance(entries, str | type) or not isinstance(entries, Iterable):
            entries = (entries,)
        entries = tuple(entries)
        for entry in entries:
            if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, BaseException)):
                raise TypeError(f"Retry.non_retryable holds exception classes or their names, not {entry!r}")
        object.__setattr__(self, "non_retryable", entries)

    def delay(self, attempt: int, randomness: float = 0.5) -> float:
        """Return the seconds to wait after failed attempt number ``attempt`` (from 1).

        ``randomness`` in [0, 1) spreads the delay by ``jitter``; 0.5 leaves it as it is.
        """
        if self.backoff == "constant":
            delay = self.base
        else:
            try:
                delay = self.base * float(self.factor) ** (attempt - 1)
            except OverflowError:
                delay = self.max_delay
        delay = min(delay, self.max_delay)
        return min(delay * (1 + self.jitter * (2 * randomness - 1)), self.max_delay)

    def allows(self, exc: BaseException) -> bool:
        """Tell whether this policy would retry after ``exc``, leaving the number of attempts aside."""
        for entry in self.non_retryable:
            if isinstance(entry, str):
                if any(entry in (c.__name__, f"{c.__module__}.{c.__qualname__}") for c in type(exc).__mro__):
                    return False
            elif isinstance(exc, entry):
                return False
        return True
