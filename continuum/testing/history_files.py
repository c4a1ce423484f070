"""The file a history is kept in.

JSON, meant to be read and compared by people: one object, in which each event has a line of its own ::

    {
    "continuum_history": 1,
    "workflow": "shop.workflows.order_flow", "version": 1, "version_hash": "0f…", "state": "completed",
    "run": {"id": "…", "namespace": "default", "parent_run_id": null, "seed": null, "depth": 0,
    "started_at": "2024-06-14T12:00:00+00:00", "began_at": "2024-06-14T12:00:00.002000+00:00"},
    "input": [{"number": "o1"}],
    "events": [
    {"seq": 1, "type": "activity_completed", "command_id": "0:1", "name": "…", "recorded_at": "…", "data": {…}}
    ]
    }

Values are as the journal has them, with their tags (``{"~decimal": "9.99"}``). Tracebacks are left out: they mean
nothing to a replay, and differ from machine to machine. Keys may be added; those that are here keep their meaning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from continuum.core.history import Event
from continuum.core.identity import RunIdentity

__all__ = ["FORMAT", "HistoryFileError", "RecordedHistory"]

FORMAT = 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class HistoryFileError(ValueError):
    """A file holds no history that can be read; the message names it, and says why."""


@dataclass(frozen=True, slots=True)
class RecordedHistory:
    """What there is to know of a run in order to replay it.

    Attributes:
        workflow: its name.
        version: the version it was started with.
        version_hash: the hash of the code it was started with.
        state: how the run stood.
        identity: the run's identity.
        input: its arguments, JSON text.
        began_us: when it was first claimed, microseconds since the epoch.
        events: its events, in order.
    """

    workflow: str
    version: int
    version_hash: str
    state: str
    identity: RunIdentity
    input: str
    began_us: int
    events: tuple[Event, ...]

    def text(self) -> str:
        """Return what the file holds."""
        run = self.identity
        about = {
            "id": str(run.id),
            "namespace": run.namespace,
            "parent_run_id": run.parent_run_id and str(run.parent_run_id),
            "seed": run.seed and str(run.seed),
            "depth": run.depth,
            "started_at": _iso(run.started_us),
            "began_at": _iso(self.began_us),
        }
        head = {"workflow": self.workflow, "version": self.version, "version_hash": self.version_hash}
        lines = [
            f'"continuum_history": {FORMAT}',
            json.dumps({**head, "state": self.state})[1:-1],
            f'"run": {json.dumps(about)}',
            f'"input": {json.dumps(json.loads(self.input))}',
            f'"events": [\n{_lines(self.events)}]',
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def read(cls, path: Path) -> RecordedHistory:
        """Read a file.

        Raises:
            HistoryFileError: it is none, or of a later format.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HistoryFileError(f"{path} cannot be read: {error}") from None
        format_ = told.get("continuum_history") if isinstance(told, dict) else None
        if format_ != FORMAT:
            what = "is no history" if format_ is None else f"is a history of format {format_!r}, not {FORMAT}"
            raise HistoryFileError(f"{path} {what}: such files are written by continuum.testing.dump_history()")
        try:
            return cls._parsed(told)
        except (KeyError, TypeError, ValueError) as error:
            raise HistoryFileError(f"{path} is damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def _parsed(cls, told: dict[str, Any]) -> RecordedHistory:
        run = told["run"]
        identity = RunIdentity(
            UUID(run["id"]),
            run["namespace"],
            told["version"],
            run["parent_run_id"] and UUID(run["parent_run_id"]),
            _us(run["started_at"]),
            run["seed"] and UUID(run["seed"]),
            run["depth"],
        )
        events = tuple(
            Event(
                event["seq"],
                event["type"],
                event["command_id"],
                event["name"],
                _compact(event["data"]),
                _us(event["recorded_at"]),
            )
            for event in told["events"]
        )
        return cls(
            told["workflow"],
            told["version"],
            told["version_hash"],
            told["state"],
            identity,
            _compact(told["input"]),
            _us(run["began_at"]),
            events,
        )


def _lines(events: tuple[Event, ...]) -> str:
    return "".join(f"{_line(event)}{',' if event is not events[-1] else ''}\n" for event in events)


def _line(event: Event) -> str:
    data = json.loads(event.data)
    if isinstance(data.get("error"), dict) and "traceback" in data["error"]:
        data["error"]["traceback"] = ""
    return json.dumps(
        {
            "seq": event.seq,
            "type": event.type,
            "command_id": event.command_id,
            "name": event.name,
            "recorded_at": _iso(event.time_us),
            "data": data,
        }
    )


def _compact(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"))


def _iso(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat()


def _us(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
