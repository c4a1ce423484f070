"""What workflow code a worker has, and which of a run's possible versions that makes it the one to take it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from continuum.core.definitions import WorkflowDefinition
from continuum.determinism import paranoid
from continuum.worker.arrays import plain_array, text_array

__all__ = ["Loaded", "token"]

# How long a run that is due, or has mail, is left to the workers that have the very code it was last run with, in
# seconds. They may be busy, or about to be found dead; others take it then, if its history lets them.
PATIENCE = 5.0


def token(version: int, version_hash: str) -> str:
    """Name a version among those that a parked run has been tried with.

    What paranoid mode refuses, a worker without it may try.
    """
    return f"{version}:{version_hash}" + (":paranoid" if paranoid.enabled() else "")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The workflows of a worker.

    Attributes:
        names: of its workflows, each once.
        hashes: the version hashes it has, of all of them.
        pinned: runs are left to workers that have their version hash.
        table: what is the candidate for runs of a workflow and version, as parameters of ``claim_parked``.
    """

    names: list[str]
    hashes: list[str] = field(default_factory=list)
    pinned: bool = False
    table: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, workflows: Iterable[WorkflowDefinition], *, pinned: bool = False) -> Loaded:
        """Describe these definitions: all the versions of each workflow that are loaded."""
        definitions = list(workflows)
        highest = {d.name: max(e.version for e in definitions if e.name == d.name) for d in definitions}
        table = {
            "loaded_names": text_array([d.name for d in definitions]),
            "loaded_versions": plain_array([d.version for d in definitions]),
            "loaded_hashes": text_array([d.version_hash for d in definitions]),
            "loaded_tokens": text_array([token(d.version, d.version_hash) for d in definitions]),
            "loaded_highest": plain_array([d.version == highest[d.name] for d in definitions]),
        }
        return cls(sorted(highest), sorted({d.version_hash for d in definitions}), pinned, table)
