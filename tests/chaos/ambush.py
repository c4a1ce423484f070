"""A worker that is stopped past its lease, and let go in a moment in which its fence alone can keep it from harm.

Under a storm whom a stop meets is chance. Here it meets a worker of which it is known that it has runs which wait, and
runs with a transactional activity about to commit. Others take them over and bring them to their ends. Then it goes on:
it commits the activities, if nothing keeps it from that, and gives back the runs that wait, as it is told to leave.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from django.db import connection

import continuum
from continuum.models import Run
from tests.chaos.checks import rows
from tests.chaos.cluster import Cluster, Member
from tests.chaos.workflows import GATES, acts_behind_gate, awaits_word
from tests.waiting_for import eventually

__all__ = ["Ambush"]

RUNS = 3  # of each kind, for each attempt to have a worker take both
PATIENCE = 60.0
OWNERS = "SELECT w.pid FROM continuum_runs r JOIN continuum_workers w ON w.id = r.owner_id WHERE r.id = %s"


class Ambush:
    """One such moment. Make it before the workers, as they have to know where the gates are.

    Args:
        say: takes a line for the log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._gates = Path(tempfile.mkdtemp(prefix="chaos-gates-"))
        os.environ[GATES] = str(self._gates)
        self._say = say
        self._started: list[UUID] = []  # of the runs that wait, all

    def spring(self, cluster: Cluster) -> None:
        """Have it happen to one of the workers, which leaves afterwards."""
        self._shut("")
        victim, waiting, acting = self._find(cluster)
        self._say(f"worker {victim.number} has {len(waiting)} runs that wait and {len(acting)} that act: stopped")
        cluster.stop(victim)
        cluster.did["SIGSTOP in an ambush"] += 1
        self._shut(str(victim.pid))
        self._open("")
        eventually(lambda: all(_owner(run) not in (None, victim.pid) for run in waiting), PATIENCE)
        for run in self._started:
            continuum.signal(run, "word", 1)
        stolen = [*waiting, *acting]
        eventually(lambda: Run.objects.filter(id__in=stolen, state="completed").count() == len(stolen), PATIENCE)
        self._say("others have ended its runs: it goes on")
        said = victim.log.read_text()
        cluster.resume(victim)
        self._open(str(victim.pid))
        eventually(lambda: _has_tried(acting, victim.log.read_text()[len(said) :]), PATIENCE)
        cluster.drain(victim)
        eventually(lambda: victim.status is not None, PATIENCE)
        self._say("it has left")
        connection.close()

    def _find(self, cluster: Cluster) -> tuple[Member, list[UUID], list[UUID]]:
        """Start runs until a worker has some of both kinds; returns it, and the runs that it has."""
        acting: dict[UUID, str] = {}

        def both() -> tuple[Member, list[UUID], list[UUID]] | None:
            for member in cluster.members:
                waits = [run for run in self._started if _owner(run) == member.pid]
                acts = [run for run, key in acting.items() if (self._gates / f"{key}.{member.pid}").exists()]
                if waits and acts:
                    return member, waits, acts
            return None

        for _ in range(20):
            for _ in range(RUNS):
                key = f"ambush-{len(acting)}"
                self._started.append(continuum.start(awaits_word, key).id)
                acting[continuum.start(acts_behind_gate, key).id] = key
            try:
                return eventually(both, 5)
            except AssertionError:
                continue
        raise AssertionError("no worker takes runs of both kinds")

    def _shut(self, who: str) -> None:
        (self._gates / f"shut.{who}").touch()

    def _open(self, who: str) -> None:
        (self._gates / f"shut.{who}").unlink()


def _owner(run_id: UUID) -> int | None:
    found = rows(OWNERS, [run_id])
    return found[0][0] if found else None


def _has_tried(acting: list[UUID], said: str) -> bool:
    """Whether a worker has done what it had in mind with these runs, or has noticed before that it lost its lease."""
    return "lease lost" in said or all(str(run) in said for run in acting)
