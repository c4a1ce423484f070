"""What workflow code has asked for and not yet got."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["Command"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Command:
    """Something a run waits for: an activity, a timer or a signal.

    Attributes:
        id: its identity within the run: the task's path and an ordinal, ``"0.2:3"``.
        kind: ``"activity"``, ``"child"``, ``"timer"`` or ``"signal"``.
        name: of the activity, signal or child's workflow.
        args: its arguments as JSON text; with id, kind and name what replay compares.
        issued_us: when the code asked, microseconds since the epoch.
        due_us: when a timer, or the timeout of a wait, is over.
        attempt: number of the attempt that is under way or next, from 1.
        not_before_us: when a retried activity may start again.
        answered: nothing more is expected for it.
        taken: it was handed out to be carried out, now or, as far as is known, in a process before this one.
        key: idempotency key of an activity, or None.
        child: the child to start.
        detached: a child whose parent does not wait for it where it starts it.
        cancelled: why its child was asked to cancel itself, or None.
        undoes: the command it compensates for, or None.
    """

    __slots__ = (
        "answered",
        "args",
        "attempt",
        "cancelled",
        "child",
        "definition",
        "detached",
        "due_us",
        "future",
        "handle",
        "id",
        "issued_us",
        "key",
        "kind",
        "last_error",
        "name",
        "not_before_us",
        "options",
        "taken",
        "undoes",
    )

    def __init__(
        self,
        id_: str,
        kind: str,
        name: str | None,
        issued_us: int,
        future: Any = None,
        definition: Any = None,
        options: Any = None,
        undoes: str | None = None,
    ) -> None:
        self.id = id_
        self.kind = kind
        self.name = name
        self.issued_us = issued_us
        self.args = "[]"
        self.attempt = 1
        self.not_before_us: int | None = None
        self.last_error: dict[str, Any] | None = None
        self.due_us: int | None = None
        self.answered = False
        self.taken = False
        self.definition = definition
        self.options = options
        self.future = future
        self.handle: Any = None
        self.key: str | None = None
        self.child: Any = None
        self.detached = False
        self.cancelled: str | None = None
        self.undoes = undoes

    def waiting(self) -> dict[str, Any]:
        """One entry of ``Run.waiting_on``."""
        entry: dict[str, Any] = {"kind": self.kind, "since": _iso(self.issued_us)}
        if self.kind == "activity":
            entry["name"] = self.name
            entry["attempt"] = self.attempt
            if self.not_before_us is not None:
                entry["next_try"] = _iso(self.not_before_us)
            if self.last_error is not None:
                entry["last_error"] = f"{self.last_error['type']}: {self.last_error['message']}"[:500]
            if self.options.queue is not None:
                entry["queue"] = self.options.queue
        elif self.kind == "child":
            entry["name"] = self.name
            entry["id"] = str(self.child.id)
        else:
            if self.name is not None:
                entry["name"] = self.name
            entry["until"] = None if self.due_us is None else _iso(self.due_us)
        return entry

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        args = self.args if len(self.args) <= 200 else self.args[:200] + "…"
        return f"{self.id} {self.kind}{name} with arguments {args}"


def _iso(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat()
