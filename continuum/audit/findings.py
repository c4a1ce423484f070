"""What an audit finds: facts, and which of them a strict audit does not accept."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from continuum.audit.proofs import ReplayReport
from continuum.audit.verdicts import SAFE_TO_REMOVE
from continuum.wording import counted

__all__ = [
    "Audit",
    "ExpiredClaim",
    "Registration",
    "Site",
    "StuckRun",
    "UnloadedVersion",
    "Version",
    "Workflow",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A call of ``patched()`` in the code at hand.

    Attributes:
        name: of the patch; None where it is computed.
        file, line: where it is.
        verdict: ``still-in-use``, or ``safe-to-remove`` with the old branch.
        in_flight_pre_patch: how many active runs may need the old branch.
        first_seen_at: when a worker registered a version with a patch of that name first; None if none has.
    """

    name: str | None
    file: str
    line: int
    verdict: str
    in_flight_pre_patch: int
    first_seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A version of a workflow that is loaded here, how many active runs are recorded with it, and its patches."""

    workflow: str
    version: int
    version_hash: str
    active_runs: int
    patch_sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a workflow, and how many live workers have it loaded."""

    workflow: str
    version: int
    version_hash: str
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How the code at hand compares with what workers have told.

    Attributes:
        not_registered: loaded here, and never by a worker.
        not_loaded_here: loaded by live workers, and not here.
        on_no_live_worker: loaded here and registered, and on no live worker now.
        live_workers: how many workers are alive that run workflows.
        silent_workers: the names of those that do not tell what they have loaded.
    """

    not_registered: tuple[Version, ...]
    not_loaded_here: tuple[Version, ...]
    on_no_live_worker: tuple[Version, ...]
    live_workers: int
    silent_workers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadedVersion:
    """A version that active runs are recorded with, and that is not loaded here.

    Attributes:
        workers: how many live workers have it loaded.
        workflow_loaded: whether another version of the workflow is loaded here.
        adoptable: whether the code at hand may go on with these runs, if it replays their histories.
        reason: why not, else "".
    """

    workflow: str
    version: int
    version_hash: str
    active_runs: int
    examples: tuple[UUID, ...]
    workers: int
    workflow_loaded: bool
    adoptable: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckRun:
    """A run that is parked as ``stuck_unknown_version``, and why.

    Attributes:
        workflow_loaded: whether a version of the workflow is loaded here.
        error: the type of the error it was parked with.
        position, history, code: of a drift: where they part, what history holds there, what the code asked for.
        reason: all there is to say, for people.
    """

    run_id: UUID
    workflow: str
    version: int
    version_hash: str
    namespace: str
    started_at: datetime
    workflow_loaded: bool
    error: str
    position: str
    history: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredClaim:
    """An activity from a queue that is with a worker that is gone; ``since`` when, if that is known."""

    run_id: UUID
    command_id: str
    activity: str
    queue: str
    attempt: int
    claimed_at: datetime | None
    worker: str | None
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit has found. ``stuck_runs`` and ``expired_claims`` count all, of which the oldest are listed."""

    audited_at: datetime
    database: str
    version_policy: str
    active_runs: int
    workflows: tuple[Workflow, ...]
    workflow_registration: Registration
    unloaded_versions: tuple[UnloadedVersion, ...]
    stuck_runs: int
    stuck_unknown_version_runs: tuple[StuckRun, ...]
    expired_claims: int
    expired_activity_claims: tuple[ExpiredClaim, ...]
    replay: ReplayReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the whole as plain JSON data, ``failures`` included."""
        return {**_plain(self), "failures": self.failures()}

    def failures(self) -> list[str]:
        """Return what a strict audit does not accept, a sentence each."""
        found = [
            f"{_site_named(site)} of {each.workflow} is safe to remove"
            for each in self.workflows
            for site in each.patch_sites
            if site.verdict == SAFE_TO_REMOVE
        ]
        found += [
            f"{counted(each.active_runs, 'active run')} of {each.workflow} version {each.version} "
            f"({each.version_hash or 'no hash'}) cannot be adopted: {each.reason}"
            for each in self.unloaded_versions
            if not each.adoptable
        ]
        if self.stuck_runs:
            found.append(f"{counted(self.stuck_runs, 'run')} stuck: code and history do not fit")
        if self.replay is not None and self.replay.drifted:
            found.append(f"{counted(self.replay.drifted, 'history', 'histories')} not replayed by the code at hand")
        return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _site_named(site: Site) -> str:
    return f"patched({site.name!r}) at {site.file}:{site.line}"
