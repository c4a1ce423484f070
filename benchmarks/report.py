"""The results of all rounds, as a table for the terminal and as one in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from benchmarks.figures import Figure, Spread

__all__ = ["OURS", "Results", "markdown", "text"]

OURS = "continuum"
HEADINGS = ("figure", "contender", "median", "min", "max", "Continuum is")
FLOOR = "(commits/s, one connection, before each round)"
LONGEST_FAILURE = 300


@dataclass
class Results:
    """What one workload yielded: the figures of each round of each contender, and the failures."""

    name: str
    title: str
    size: int
    figures: tuple[Figure, ...]
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    floor: list[float] = field(default_factory=list)
    """Single-row commits a second on one connection, just before each round: how the disk was."""

    def lines(self) -> Iterator[tuple[str, ...]]:
        """Yield the lines of the table. A contender that failed in any round has no figures."""
        if self.floor:
            yield (FLOOR, "PostgreSQL", *_spread_cells(Spread.of(self.floor)), "")
        for figure in self.figures:
            for contender in self.rounds:
                spread = self._spread(contender, figure)
                if spread is None:
                    continue
                ours = self._spread(OURS, figure)
                factor = None
                if ours is not None and contender != OURS:
                    factor = ours.factor(spread, figure.better)
                yield (
                    figure.title,
                    contender,
                    *_spread_cells(spread),
                    "" if factor is None else f"{factor:.1f} ×",
                )

    def _spread(self, contender: str, figure: Figure) -> Spread | None:
        if contender in self.failures:
            return None
        values = [figures[figure.key] for figures in self.rounds.get(contender, []) if figure.key in figures]
        return Spread.of(values) if values else None


def text(results: Results) -> str:
    """Return the table of a workload for the terminal."""
    lines = list(results.lines())
    widths = [max(map(len, column)) for column in zip(HEADINGS, *lines, strict=True)]
    shown = [f"{results.name.upper()}, {results.size:,} {results.title}"]
    for line in (HEADINGS, *lines):
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  " + "  ".join(cells).rstrip())
    shown += [f"  FAILED {contender}: {why[:LONGEST_FAILURE]}" for contender, why in results.failures.items()]
    return "\n".join(shown)


def markdown(every: Iterable[Results], preface: Iterable[str]) -> str:
    """Return all tables as one in markdown."""
    every = list(every)
    lines = [*preface, ""]
    lines += [f"* {results.name.upper()}: {results.size:,} {results.title}" for results in every]
    lines += ["", "| | " + " | ".join(HEADINGS) + " |", "|---|---|---|--:|--:|--:|--:|"]
    for results in every:
        lines += [f"| {results.name.upper()} | {' | '.join(line)} |" for line in results.lines()]
        lines += [
            f"| {results.name.upper()} | **failed** | {contender} | | | | {_cell(why)} |"
            for contender, why in results.failures.items()
        ]
    return "\n".join(lines) + "\n"


def _cell(why: str) -> str:
    return why[:LONGEST_FAILURE].replace("|", "\\|")


def _spread_cells(spread: Spread) -> tuple[str, ...]:
    return tuple(_number(value) for value in (spread.median, spread.low, spread.high))


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
