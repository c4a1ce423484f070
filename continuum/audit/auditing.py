"""The audit: what code is loaded here, what code the runs in flight were made by, and whether the one fits the other.

Reads only. What the numbers mean, and where they err on the safe side, is in ``docs/audit.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from continuum.audit import verdicts
from continuum.audit.findings import (
    Audit,
    ExpiredClaim,
    Registration,
    Site,
    StuckRun,
    UnloadedVersion,
    Version,
    Workflow,
)
from continuum.audit.proofs import ReplayReport
from continuum.audit.snapshot import snapshot
from continuum.audit.verdicts import ActiveRuns
from continuum.conf import settings as continuum_settings
from continuum.core.code.patches import PatchSite, patch_sites
from continuum.core.definitions import WorkflowDefinition, registry
from continuum.moments import aware
from continuum.sourcefiles import shown
from continuum.worker.sql import load

__all__ = ["audit"]

STUCK = "stuck_unknown_version"
# How many ids of runs stand for many.
MOST_EXAMPLES = 3


def audit(using: str | None = None, *, limit: int = 100, replay: ReplayReport | None = None) -> Audit:
    """Compare the workflows loaded in this process with the runs in flight. Writes nothing.

    Args:
        using: database alias, by default ``CONTINUUM["DATABASE"]``.
        limit: how many stuck runs, and how many expired claims, are listed at most.
        replay: what came of proving histories (``continuum.audit.proofs``), to be a part of the report.
    """
    alias = using or continuum_settings.DATABASE
    loaded = registry.workflows()
    sites = {definition: patch_sites(definition.fn) for definition in loaded}
    with snapshot(alias) as cursor:
        groups = _active_runs(cursor, sites)
        registered = _registered(cursor)
        workers = _live_workers(cursor)
        stuck = _stuck(cursor, limit)
        claims, expired = _expired_claims(cursor, limit)
    by_code, unloaded = _by_code(loaded, groups, workers)
    return Audit(
        audited_at=datetime.now(UTC),
        database=alias,
        version_policy=continuum_settings.VERSION_POLICY,
        active_runs=sum(group.runs for group in groups),
        workflows=tuple(
            Workflow(
                workflow=each.name,
                version=each.version,
                version_hash=each.version_hash,
                active_runs=by_code[each],
                patch_sites=_sites(each, found, groups, registered, workers),
            )
            for each, found in sites.items()
        ),
        workflow_registration=_registration(loaded, registered, workers),
        unloaded_versions=unloaded,
        stuck_runs=sum(group.runs for group in groups if group.state == STUCK),
        stuck_unknown_version_runs=stuck,
        expired_claims=expired,
        expired_activity_claims=claims,
        replay=replay,
    )


# -- what the database says -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Registered:
    workflow: str
    version: int
    version_hash: str
    names: tuple[str | None, ...]
    first_seen_at: datetime


@dataclass(frozen=True, slots=True)
class _Worker:
    """A live worker; ``versions`` is workflow → hash → version, None where it does not tell."""

    name: str
    versions: Mapping[str, Mapping[str, int]] | None

    def code_for(self, workflow: str, version: int) -> list[str]:
        """Return the hashes of the code that it runs a workflow's version with: the highest where it lacks that."""
        versions = (self.versions or {}).get(workflow, {})
        chosen = version if version in versions.values() else max(versions.values(), default=None)
        return [version_hash for version_hash, number in versions.items() if number == chosen]


def _active_runs(cursor: Any, sites: Mapping[WorkflowDefinition, list[PatchSite]]) -> list[ActiveRuns]:
    patched = sorted({definition.name for definition, found in sites.items() if found})
    names = sorted({site.name for found in sites.values() for site in found if site.name is not None})
    cursor.execute(load("audit_active"), {"patched": patched, "names": names})
    return [
        ActiveRuns(
            workflow,
            version,
            version_hash,
            state,
            begun,
            forked,
            frozenset(mark[1:] for mark in marks or () if mark[0] == "p"),
            frozenset(part for mark in marks or () if mark[0] == "v" for part in mark[1:].split(" ")),
            runs,
            tuple(examples),
        )
        for workflow, version, version_hash, state, begun, forked, marks, runs, examples in cursor.fetchall()
    ]


def _registered(cursor: Any) -> list[_Registered]:
    cursor.execute(load("audit_versions"))
    return [
        _Registered(workflow, version, code, tuple(site.get("name") for site in json.loads(sites)), aware(first_seen))
        for workflow, version, code, sites, first_seen, _ in cursor.fetchall()
    ]


def _live_workers(cursor: Any) -> list[_Worker]:
    cursor.execute(load("audit_workers"))
    return [_Worker(name, versions and json.loads(versions)) for _, name, versions in cursor.fetchall()]


def _stuck(cursor: Any, limit: int) -> tuple[StuckRun, ...]:
    cursor.execute(load("audit_stuck"), {"limit": limit})
    known = {definition.name for definition in registry.workflows()}
    found = []
    for run_id, workflow, version, version_hash, namespace, started_at, text in cursor.fetchall():
        error = json.loads(text) if text else {}
        details = error.get("details")
        drift = details if isinstance(details, dict) else {}
        found.append(
            StuckRun(
                run_id=run_id,
                workflow=workflow,
                version=version,
                version_hash=version_hash,
                namespace=namespace,
                started_at=aware(started_at),
                workflow_loaded=workflow in known,
                error=error.get("type", ""),
                position=drift.get("position", ""),
                history=drift.get("history", ""),
                code=drift.get("code", ""),
                reason=error.get("message", ""),
            )
        )
    return tuple(found)


def _expired_claims(cursor: Any, limit: int) -> tuple[tuple[ExpiredClaim, ...], int]:
    cursor.execute(load("audit_claims"), {"limit": limit})
    rows = cursor.fetchall()
    claims = tuple(
        ExpiredClaim(
            run_id=run_id,
            command_id=command_id,
            activity=activity,
            queue=queue,
            attempt=attempt,
            claimed_at=aware(claimed_at),
            worker=name or f"worker {owner}",
            since=aware(since),
        )
        for run_id, command_id, activity, queue, attempt, claimed_at, owner, name, since, _ in rows
    )
    return claims, rows[0][-1] if rows else 0


# -- what follows from it -------------------------------------------------------------------------------------------


def _by_code(
    loaded: list[WorkflowDefinition], groups: Iterable[ActiveRuns], workers: list[_Worker]
) -> tuple[dict[WorkflowDefinition, int], tuple[UnloadedVersion, ...]]:
    """Divide the active runs among the code that is loaded and the code that is not."""
    by_code = dict.fromkeys(loaded, 0)
    unloaded: dict[tuple[str, int, str], list[ActiveRuns]] = {}
    names = {definition.name for definition in loaded}
    for group in groups:
        same = [each for each in loaded if (each.name, each.version_hash) == (group.workflow, group.version_hash)]
        if same:
            by_code[next((each for each in same if each.version == group.version), same[0])] += group.runs
        else:
            unloaded.setdefault((group.workflow, group.version, group.version_hash), []).append(group)
    return by_code, tuple(
        UnloadedVersion(
            workflow=workflow,
            version=version,
            version_hash=version_hash,
            active_runs=sum(group.runs for group in found),
            examples=tuple(sorted(run_id for group in found for run_id in group.examples)[:MOST_EXAMPLES]),
            workers=_workers_with(workers, workflow, version_hash),
            workflow_loaded=workflow in names,
            adoptable=not (reason := _why_not(found, workflow in names)),
            reason=reason,
        )
        for (workflow, version, version_hash), found in sorted(unloaded.items())
    )


def _why_not(groups: Iterable[ActiveRuns], loaded: bool) -> str:
    """Return why the code at hand may not go on with runs, or ""."""
    if not loaded:
        return "the workflow is not loaded"
    if continuum_settings.VERSION_POLICY == "pin":
        return 'VERSION_POLICY is "pin"'
    for group in groups:
        highest = registry.workflow(group.workflow, group.version).version
        # Nothing proves that older code is fit for what such a run was given.
        if not group.begun and highest < group.version:
            return f"{group.runs} have not begun, and version {highest} is the highest that is loaded"
    return ""


def _sites(
    definition: WorkflowDefinition,
    sites: list[PatchSite],
    groups: Iterable[ActiveRuns],
    registered: list[_Registered],
    workers: list[_Worker],
) -> tuple[Site, ...]:
    if not sites:
        return ()
    workflow = definition.name
    own = [row for row in registered if row.workflow == workflow]
    # Runs of a version that is loaded beside this one are that one's business.
    runs = [
        group
        for group in groups
        if group.workflow == workflow and registry.workflow(workflow, group.version) is definition
    ]
    registrations: dict[str, list[tuple[str | None, ...]]] = {}
    for row in own:
        registrations.setdefault(row.version_hash, []).append(row.names)
    registrations[definition.version_hash] = [tuple(site.name for site in sites)]
    found = []
    for site in sites:
        having: frozenset[str] = frozenset()
        if site.name is not None:
            times = sum(other.name == site.name for other in sites)
            having = verdicts.have_site(site.name, times, registrations)
        pre_patch = verdicts.in_flight_pre_patch(runs, site.name, having)
        in_use = site.name is None or pre_patch > 0 or _may_run_without(workers, definition, having)
        found.append(
            Site(
                name=site.name,
                file=shown(site.file),
                line=site.line,
                verdict=verdicts.STILL_IN_USE if in_use else verdicts.SAFE_TO_REMOVE,
                in_flight_pre_patch=pre_patch,
                first_seen_at=min((row.first_seen_at for row in own if site.name in row.names), default=None),
            )
        )
    return tuple(found)


def _may_run_without(workers: Iterable[_Worker], definition: WorkflowDefinition, having: frozenset[str]) -> bool:
    """Return whether a live worker may run the workflow with code that lacks a site."""
    return any(
        worker.versions is None or not having.issuperset(worker.code_for(definition.name, definition.version))
        for worker in workers
    )


def _registration(
    loaded: list[WorkflowDefinition], registered: Iterable[_Registered], workers: list[_Worker]
) -> Registration:
    known = {(row.workflow, row.version, row.version_hash) for row in registered}
    here = {(each.name, each.version, each.version_hash) for each in loaded}
    live = set(_loaded_by(workers))

    def versions(keys: Iterable[tuple[str, int, str]]) -> tuple[Version, ...]:
        return tuple(
            Version(workflow=name, version=number, version_hash=hash_, workers=_workers_with(workers, name, hash_))
            for name, number, hash_ in sorted(keys)
        )

    return Registration(
        not_registered=versions(here - known),
        not_loaded_here=versions(live - here),
        on_no_live_worker=versions((here & known) - live),
        live_workers=len(workers),
        silent_workers=tuple(worker.name for worker in workers if worker.versions is None),
    )


def _loaded_by(workers: Iterable[_Worker]) -> Iterator[tuple[str, int, str]]:
    for worker in workers:
        for workflow, versions in (worker.versions or {}).items():
            for version_hash, version in versions.items():
                yield workflow, version, version_hash


def _workers_with(workers: Iterable[_Worker], workflow: str, version_hash: str) -> int:
    return sum(version_hash in (worker.versions or {}).get(workflow, {}) for worker in workers)
