"""What a check found, and what checks read with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from continuum.moments import aware
from continuum.wording import duration
from continuum.worker.sql import load

__all__ = ["GRACE", "Check", "Health", "Look", "Status", "lasting", "some"]

# Seconds that something may be late before it counts as late: several polls, a take-over, a busy moment.
GRACE = 30.0
# Failed runs count for so long, in seconds.
FAILED_SINCE = 86_400.0
# How many of several groups a sentence names.
MOST_NAMED = 3


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


_ORDER = [Status.OK, Status.WARNING, Status.CRITICAL]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: the check, such as ``overdue``.
        status: how it came out.
        message: what was found, in a sentence.
        count: how much of it.
        hint: what to do about it; empty if nothing.
        examples: ids of runs that show it.
    """

    name: str
    status: Status = Status.OK
    message: str
    count: int = 0
    hint: str = ""
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Health:
    """All that was found.

    Attributes:
        checked_at: the database's time.
        checks: what each check found, in a fixed order.
    """

    checked_at: datetime
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst of them."""
        return max((check.status for check in self.checks), key=_ORDER.index, default=Status.OK)

    def as_dict(self) -> dict[str, Any]:
        """Return the whole as plain JSON data."""
        return {
            "status": self.status.value,
            "checked_at": self.checked_at.isoformat(),
            "checks": [asdict(check) | {"status": check.status.value} for check in self.checks],
        }


class Look:
    """Reads what the checks ask for."""

    def __init__(self, cursor: Any, alias: str) -> None:
        self.cursor = cursor
        self.alias = alias
        cursor.execute("SELECT extract(epoch FROM statement_timestamp())::float8")
        self.now = datetime.fromtimestamp(cursor.fetchone()[0], UTC)
        self.alive, self.draining, self.deaf, self.lapsed = self.rows("health_workers")[0]

    def rows(self, statement: str) -> list[Any]:
        self.cursor.execute(load(statement), {"grace": GRACE, "since": FAILED_SINCE})
        return self.cursor.fetchall()

    def ago(self, moment: datetime) -> str:
        return lasting((self.now - aware(moment)).total_seconds())


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def lasting(seconds: float) -> str:
    """Return how long something has lasted, in its largest unit."""
    return duration(timedelta(seconds=seconds), units=1)
