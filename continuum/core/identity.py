"""What a run is, whatever happens to it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

__all__ = ["RunIdentity"]


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a run is, whatever happens to it.

    ``seed`` is what its randomness derives from, if that is not its id; ``depth`` is how many parents it has above it.
    """

    id: UUID
    namespace: str = "default"
    version: int = 1
    parent_run_id: UUID | None = None
    started_us: int = 0
    seed: UUID | None = None
    depth: int = 0

    @property
    def randomness(self) -> UUID:
        """What all that is random in the run derives from, to be the same in each replay."""
        return self.seed or self.id
