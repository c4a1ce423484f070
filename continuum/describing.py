"""Runs and their histories as JSON, the way people and scripts read them: values shown readably, secrets redacted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections

from continuum import values
from continuum.exceptions import RunNotFoundError
from continuum.models import HistoryEvent, Run
from continuum.moments import aware
from continuum.redaction import Shown, redacted

__all__ = ["PAYLOADS", "described", "events", "payloads"]

#: The columns of a run that hold values of the workflow's.
PAYLOADS = ("input", "result", "error", "progress", "waiting_on")
_PAGE = 500


def described(run: Run) -> dict[str, Any]:
    """Return what there is to say of a run, but for its values: JSON data, times in ISO 8601, keys in a fixed order."""
    return {
        "id": str(run.id),
        "workflow": run.workflow,
        "version": run.version,
        "version_hash": run.version_hash,
        "namespace": run.namespace,
        "attributes": run.attributes,
        "state": run.state,
        "started_at": _iso(run.started_at),
        "claimed_at": _iso(run.claimed_at),
        "completed_at": _iso(run.completed_at),
        "next_wakeup_at": _iso(run.next_wakeup_at),
        "deadline_at": _iso(run.deadline_at),
        "retention_until": _iso(run.retention_until),
        "owner_id": run.owner_id,
        "recoveries": run.recoveries,
        "priority": run.priority,
        "idempotency_key": run.idempotency_key,
        "parent_run_id": _text(run.parent_run_id),
        "correlation_id": _text(run.correlation_id),
        "continued_from_run_id": _text(run.continued_from_run_id),
        "continued_to_run_id": _text(run.continued_to_run_id),
        "forked_from_run_id": _text(run.forked_from_run_id),
    }


def payloads(run: Run) -> dict[str, Any]:
    """Read the values of a run, by column.

    They are read as text: a class that is gone does not keep anybody from looking.

    Raises:
        RunNotFoundError: the run is not there any more.
    """
    columns = ", ".join(f"{name}::text" for name in PAYLOADS)
    with connections[run._state.db].cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM continuum_runs WHERE id = %s", [run.id])
        row = cursor.fetchone()
    if row is None:
        raise RunNotFoundError(run.id)
    return {
        name: None if text is None else redacted(values.display(text), _shown(run, name))
        for name, text in zip(PAYLOADS, row, strict=True)
    }


def events(run: Run, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a run's events, oldest first, read page by page.

    Args:
        run: the run.
        after: leave out the events up to this number.
    """
    while True:
        with connections[run._state.db].cursor() as cursor:
            cursor.execute(
                f"SELECT seq, type, command_id, name, recorded_at, data::text FROM {HistoryEvent._meta.db_table} "
                "WHERE run_id = %s AND seq > %s ORDER BY seq LIMIT %s",
                [run.id, after, _PAGE],
            )
            rows = cursor.fetchall()
        for seq, type_, command_id, name, recorded_at, data in rows:
            yield {
                "seq": seq,
                "type": type_,
                "command_id": command_id,
                "name": name,
                "recorded_at": _iso(recorded_at),
                "data": redacted(values.display(data), _shown(run, "event", type=type_, name=name or "")),
            }
            after = seq
        if len(rows) < _PAGE:
            return


def _shown(run: Run, field: str, **more: str) -> Shown:
    return Shown(field=field, run_id=run.id, workflow=run.workflow, namespace=run.namespace, **more)


def _iso(when: datetime | None) -> str | None:
    return None if when is None else aware(when).isoformat()


def _text(run_id: UUID | None) -> str | None:
    return None if run_id is None else str(run_id)
