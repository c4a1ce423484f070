"""Proving that the code at hand fits the histories of the runs in flight, before it is deployed.

Each history is replayed in memory, and nothing comes of it but the answer. They are read a few at a time, each batch as
of one moment, so that neither this process nor the database has to hold on to more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from continuum.audit.snapshot import snapshot
from continuum.conf import settings as continuum_settings
from continuum.core.definitions import WorkflowDefinition, registry
from continuum.core.history import Event
from continuum.core.identity import RunIdentity
from continuum.core.proof import prove
from continuum.exceptions import ReplayDriftError, UnknownWorkflowError
from continuum.worker.claims import histories_of
from continuum.worker.deadlocks import Watchdog
from continuum.worker.sql import load

__all__ = ["Drift", "ReplayReport", "prove_live_histories"]

# Runs whose rows are read at once, and events: a bound on memory, but for one history that is longer by itself.
_BATCH = 100
_MOST_EVENTS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A history that the code at hand does not replay.

    Attributes:
        error: the type of the error.
        position, history, code: where they part, what history holds there, what the code asks for.
        message: all there is to say, for people.
    """

    run_id: UUID
    workflow: str
    version: int
    version_hash: str
    error: str
    position: str
    history: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What came of replaying histories.

    Attributes:
        live: how many runs were in flight when it began.
        sample: how many histories of each version were to be proved at most; None: all.
        proved: how many histories the code at hand replays.
        drifted: how many it does not.
        skipped: why others were not tried → how many: ``not_loaded`` (the workflow), ``pinned`` (other code may not
            go on with them), ``newer_version`` (not begun, and started for a higher version than is loaded here),
            ``not_sampled``, ``ended`` (meanwhile).
        drifts: those it does not replay, as many as were asked for.
    """

    live: int
    sample: int | None
    proved: int
    drifted: int
    skipped: dict[str, int]
    drifts: tuple[Drift, ...]


def prove_live_histories(
    alias: str,
    *,
    sample: int | None = None,
    limit: int = 100,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReplayReport:
    """Replay the histories of the runs in flight against the code at hand. Writes nothing.

    Args:
        alias: the database.
        sample: at most so many histories of each version of a workflow, spread over their ages; None for all.
        limit: how many of those that do not fit are described.
        progress: called with how many were tried, and how many there are to try.
    """
    skipped: Counter[str] = Counter()
    chosen: list[bytes] = []
    live = 0
    for workflow, version, version_hash, ids in _live(alias):
        runs = len(ids) // 16
        live += runs
        reason = _reason_to_skip(workflow, version, version_hash)
        if reason is not None:
            skipped[reason] += runs
            continue
        places = _spread(runs, sample)
        skipped["not_sampled"] += runs - len(places)
        chosen += [ids[16 * place : 16 * place + 16] for place in places]
    tally = _Tally(limit)
    with Watchdog(continuum_settings.DEADLOCK_TIMEOUT) as watchdog:
        for first in range(0, len(chosen), _BATCH):
            batch = [UUID(bytes=each) for each in chosen[first : first + _BATCH]]
            found = 0
            for row, events in _histories(alias, batch):
                found += 1
                definition = registry.workflow(row.workflow, row.version)
                if not events and definition.version < row.version:
                    skipped["newer_version"] += 1
                else:
                    tally.prove(definition, row, events, watchdog)
            skipped["ended"] += len(batch) - found
            progress(first + len(batch), len(chosen))
    return ReplayReport(
        live=live,
        sample=sample,
        proved=tally.tried - tally.drifted,
        drifted=tally.drifted,
        skipped={reason: count for reason, count in sorted(skipped.items()) if count},
        drifts=tuple(tally.drifts),
    )


class _Tally:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tried = 0
        self.drifted = 0
        self.drifts: list[Drift] = []

    def prove(self, definition: WorkflowDefinition, row: _Row, events: list[Event], watchdog: Watchdog) -> None:
        self.tried += 1
        try:
            pinned = continuum_settings.VERSION_POLICY == "pin"
            # What it is to code that has adopted it; under "pin" nothing is adopted.
            identity = row.identity(row.version if pinned else definition.version)
            prove(definition, identity, row.input, events, began_us=row.began_us, watch=watchdog.watch)
        except Exception as error:
            self.drifted += 1
            if len(self.drifts) < self.limit:
                self.drifts.append(_drift(row, error))


@dataclass(frozen=True, slots=True)
class _Row:
    run_id: UUID
    workflow: str
    version: int
    version_hash: str
    namespace: str
    input: str
    parent_run_id: UUID | None
    seed: UUID | None
    depth: int
    started_us: int
    began_us: int
    events: int

    def identity(self, version: int) -> RunIdentity:
        return RunIdentity(
            self.run_id, self.namespace, version, self.parent_run_id, self.started_us, self.seed, self.depth
        )


def _live(alias: str) -> list[tuple[str, int, str, bytes]]:
    with snapshot(alias) as cursor:
        cursor.execute(load("audit_histories"))
        return [(*code, bytes(ids)) for *code, ids in cursor.fetchall()]


def _reason_to_skip(workflow: str, version: int, version_hash: str) -> str | None:
    try:
        definition = registry.workflow(workflow, version)
    except UnknownWorkflowError:
        return "not_loaded"
    if continuum_settings.VERSION_POLICY == "pin" and definition.version_hash != version_hash:
        return "pinned"
    return None


def _spread(runs: int, sample: int | None) -> list[int]:
    """Return the places of so many, from the oldest to the newest."""
    if sample is None or sample >= runs:
        return list(range(runs))
    if sample == 1:
        return [runs - 1]
    return [place * (runs - 1) // (sample - 1) for place in range(sample)]


def _histories(alias: str, run_ids: list[UUID]) -> Iterator[tuple[_Row, list[Event]]]:
    with snapshot(alias) as cursor:
        cursor.execute(load("audit_runs"), {"run_ids": run_ids})
        for group in _groups([_Row(*row) for row in cursor.fetchall()]):
            cursor.execute(load("history_load"), {"run_ids": [row.run_id for row in group]})
            histories = histories_of(cursor.fetchall())
            for row in group:
                yield row, histories.pop(row.run_id, [])


def _groups(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Divide runs into groups whose histories together are not too long."""
    group: list[_Row] = []
    size = 0
    for row in rows:
        if group and size + row.events > _MOST_EVENTS:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.events
    if group:
        yield group


def _drift(row: _Row, error: Exception) -> Drift:
    drift = error if isinstance(error, ReplayDriftError) else None
    return Drift(
        run_id=row.run_id,
        workflow=row.workflow,
        version=row.version,
        version_hash=row.version_hash,
        error=type(error).__name__,
        position=drift.position if drift else "",
        history=drift.history if drift else "",
        code=drift.code if drift else "",
        message=str(error),
    )
