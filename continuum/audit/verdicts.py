"""Whether a ``patched()`` site is still in use: which runs in flight may need its old branch.

A run takes the old branch where its history went past the place without asking. Code that has the site asks, and the
answer is in the history with the next event. So a run that was only ever run by code that has the site needs no old
branch, nor does one whose history holds the decision, nor one that nobody has begun. Every other may: it is counted
also if it has not come to the place yet, as that cannot be told without replaying it. Too many is a nuisance, too few
would be a run that drifts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

__all__ = ["SAFE_TO_REMOVE", "STILL_IN_USE", "ActiveRuns", "have_site", "in_flight_pre_patch", "may_be_pre_patch"]

STILL_IN_USE = "still-in-use"
SAFE_TO_REMOVE = "safe-to-remove"


@dataclass(frozen=True, slots=True)
class ActiveRuns:
    """Runs that can still go on and are alike in all that matters here.

    Attributes:
        workflow, version, version_hash: the code they are recorded with: what they were started with, or adopted by.
        state: theirs.
        begun: whether a worker has claimed them.
        forked: whether they share the history of another run, which other code may have made.
        decided: the patches their histories hold a decision on.
        hashes: of the code that their histories say they were run by, before and after each adoption.
        runs: how many they are.
        examples: some of them.
    """

    workflow: str
    version: int
    version_hash: str
    state: str
    begun: bool
    forked: bool
    decided: frozenset[str]
    hashes: frozenset[str]
    runs: int
    examples: tuple[UUID, ...] = ()


def may_be_pre_patch(group: ActiveRuns, name: str, having: Iterable[str]) -> bool:
    """Return whether runs may need the old branch of a patch.

    Args:
        group: the runs.
        name: the patch's.
        having: hashes of the workflow's versions that are known to have the site.
    """
    if not group.begun or name in group.decided:
        return False
    return group.forked or not (group.hashes | {group.version_hash}) <= frozenset(having)


def in_flight_pre_patch(groups: Iterable[ActiveRuns], name: str | None, having: Iterable[str]) -> int:
    """Return how many runs may need the old branch of a patch; of one whose name is computed, how many have begun."""
    if name is None:
        return sum(group.runs for group in groups if group.begun)
    having = frozenset(having)
    return sum(group.runs for group in groups if may_be_pre_patch(group, name, having))


def have_site(name: str, times: int, sites: Mapping[str, Iterable[Iterable[str | None]]]) -> frozenset[str]:
    """Return the hashes of the versions that ask for a patch at as many places.

    One that asks at fewer lacks a site: a run may have gone past it.

    Args:
        name: the patch's.
        times: at how many places the code at hand asks for it.
        sites: hash → for each registration of that version, the names of the patches at its sites.
    """
    return frozenset(
        version_hash
        for version_hash, registrations in sites.items()
        if all(Counter(names)[name] >= times for names in registrations)
    )
