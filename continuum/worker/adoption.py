"""Which code a claimed run gets, and what is recorded when that is not the code that had it before.

A run goes to its own version number; where that is not loaded, to the highest there is. If the code is not the very
code it was last run with, the replay of its history is the proof that it can go on, and an event says that it did.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from continuum.conf import settings as continuum_settings
from continuum.core.adoption import adopt
from continuum.core.definitions import registry
from continuum.core.history import Event, EventType
from continuum.core.identity import RunIdentity
from continuum.exceptions import UnknownWorkflowError
from continuum.worker import rows
from continuum.worker.claims import ClaimedRun
from continuum.worker.journal import Journal
from continuum.worker.live import LiveRun

__all__ = ["NoCodeError", "UnloadedWorkflow", "check", "code_for", "pinned", "record"]


class NoCodeError(Exception):
    """The code that this run is to go on with is not here."""

    kind = "UnknownWorkflowError"  # what the run's error is called


@dataclass(frozen=True)
class UnloadedWorkflow:
    """Stands for a workflow that no worker has loaded, in a run that is only claimed to be ended."""

    name: str
    version: int
    version_hash: str
    retention: timedelta | None = timedelta(days=30)
    signals: None = None
    returns: None = None

    def decode_arguments(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        return [], {}

    async def fn(self) -> None:
        raise AssertionError(f"{self.name} has no code here")


def pinned() -> bool:
    """Whether runs are left to workers that have the very code they were started with."""
    return continuum_settings.VERSION_POLICY == "pin"


def code_for(claimed: ClaimedRun) -> tuple[Any, RunIdentity, tuple[int, str] | None]:
    """Choose the code for a run.

    Returns:
        tuple: the definition; who the run is to it; and the version and hash the run was claimed with, if these are not
        the definition's own, so that it has to be adopted.
    """
    identity = claimed.identity
    try:
        definition = registry.workflow(claimed.workflow, claimed.version)
    except UnknownWorkflowError:
        definition = UnloadedWorkflow(claimed.workflow, claimed.version, claimed.version_hash)
        return definition, identity, (claimed.version, claimed.version_hash)
    if definition.version_hash == claimed.version_hash and (definition.version == claimed.version or pinned()):
        return definition, identity, None
    # From now on every replay is told this version: so is this one.
    return definition, replace(identity, version=definition.version), (claimed.version, claimed.version_hash)


def check(live: LiveRun, history: list[Event]) -> None:
    """To be called before code that the run was not claimed with does anything.

    Raises:
        NoCodeError: it is not to be tried.
    """
    assert live.adopts is not None
    version, version_hash = live.adopts
    definition = live.definition
    reason = ""
    if isinstance(definition, UnloadedWorkflow):
        reason = f"no live worker has loaded workflow {definition.name}"
    elif pinned():
        reason = (
            f'VERSION_POLICY is "pin", and this worker has not loaded the code of the run: version {version} '
            f"({version_hash}) of {definition.name}; it has version {definition.version} ({definition.version_hash})"
        )
    elif not history and definition.version < version:
        # An empty history proves nothing, and what the run was given was meant for newer code.
        reason = (
            f"the run was started for version {version} of {definition.name}, and the highest version that this worker "
            f"has loaded is {definition.version}; it goes to the first worker with version {version} or higher"
        )
    if reason:
        live.execution.events = history
        raise NoCodeError(reason)


def record(journal: Journal, live: LiveRun, now_us: int) -> None:
    """The history has replayed: have the code's version recorded in it, and in the row, in one commit."""
    assert live.adopts is not None
    (version, version_hash), live.adopts = live.adopts, None
    made = live.execution.journal
    if made and made[0].type == EventType.CANCEL_REQUESTED:
        return  # cancelled before it began: no code of it was run
    adopt(live.execution, version, version_hash, now_us)
    entry = journal.entry(live)
    if entry.update is None:
        # The journal's statement has to lock the row before the outbox writes to it. The run has done nothing yet.
        entry.update = live.summary = rows.summary(live)._replace(state="running", recoveries=None)
    entry.send().adopted = (live.definition.version, live.definition.version_hash)
