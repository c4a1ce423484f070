"""Figures: what a workload yields, and the statistics of it over several rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Figure", "Spread", "percentile"]


@dataclass(frozen=True)
class Figure:
    """One thing that is measured.

    Attributes:
        key: its name in the results of a round.
        title: its name for people, with the unit.
        better: "higher", "lower", or "" where it explains rather than compares.
    """

    key: str
    title: str
    better: str = ""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values, at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def factor(self, peer: Spread, better: str) -> float | None:
        """Return how many times better this is than ``peer``; None where that means nothing."""
        ours, theirs = (self.median, peer.median) if better == "higher" else (peer.median, self.median)
        return ours / theirs if better and theirs > 0 else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` (0 to 1) of the values do not exceed, by the nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
