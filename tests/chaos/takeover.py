"""How long the runs of a killed worker stay bound to it, and until others have them. All times are the database's."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import UUID

import psycopg

__all__ = ["TakeOver"]

_OWNERS = "SELECT id FROM continuum_workers WHERE pid = %s"
_RUNS = """
    SELECT r.id FROM continuum_runs r JOIN continuum_workers w ON w.id = r.owner_id
    WHERE w.pid = %s AND w.state <> 'dead' AND r.state NOT IN ('completed', 'failed', 'cancelled')
"""
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
# Bound to the dead; free, and due, and nobody has it. Runs suspected of killing their worker wait for their turn.
_LOOK = f"""
    SELECT ({_NOW.removeprefix("SELECT ")}), count(*) FILTER (WHERE r.owner_id = ANY(%(owners)s)),
        count(*) FILTER (WHERE r.owner_id IS NULL AND r.next_wakeup_at <= clock_timestamp() AND r.recoveries < 2)
    FROM continuum_runs r WHERE r.id = ANY(%(runs)s)
"""


@dataclass
class _Death:
    at: float
    owners: list[int]
    runs: list[UUID]
    freed: float | None = None
    taken: float | None = None


class TakeOver:
    """Watches what becomes of the runs of workers that are killed.

    Args:
        url: the database.
        longest: seconds within which they must be free for others.
    """

    def __init__(self, url: str, longest: float) -> None:
        self._url = url
        self._longest = longest
        self._deaths: list[_Death] = []
        self._last = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="take-over", daemon=True)
        self._thread.start()

    def about_to_kill(self, pid: int) -> None:
        """A worker process is killed right after this."""
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                owners = [
                    row[0] for row in connection.execute("SELECT id FROM continuum_workers WHERE pid = %s", [pid])
                ]
                runs = [row[0] for row in connection.execute(_RUNS, [pid])]
                at = connection.execute(_NOW).fetchone()[0]
        except psycopg.Error:
            return  # the server is being restarted: nobody can tell what it had
        if runs:
            self._deaths.append(_Death(at, owners, runs))

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join(10)

    @property
    def violations(self) -> list[str]:
        """What took too long, as sentences."""
        return [
            f"{len(death.runs)} runs of killed workers {death.owners} were still theirs "
            f"{(death.freed or self._last) - death.at:.1f} s later"
            for death in self._deaths
            if (death.freed or self._last) - death.at > self._longest
        ]

    def __str__(self) -> str:
        told = []
        for what in ("freed", "taken"):
            seconds = [at - death.at for death in self._deaths if (at := getattr(death, what)) is not None]
            if seconds:
                told.append(f"{what} after {median(seconds):.2f} s (median), {max(seconds):.2f} s (longest)")
        return f"runs of {len(self._deaths)} killed workers were {' and '.join(told) or 'not seen again'}"

    def _watch(self) -> None:
        connection: Any = None
        while not self._over.wait(0.05):
            try:
                connection = connection or psycopg.connect(self._url, autocommit=True)
                for death in [death for death in self._deaths if death.taken is None]:
                    self._look(connection, death)
            except psycopg.Error:
                connection = None
                time.sleep(0.05)
        if connection is not None:
            connection.close()

    def _look(self, connection: Any, death: _Death) -> None:
        row = connection.execute(_LOOK, {"owners": death.owners, "runs": death.runs}).fetchone()
        self._last, bound, free = row
        if not bound and death.freed is None:
            death.freed = self._last
        if death.freed is not None and not free:
            death.taken = self._last
