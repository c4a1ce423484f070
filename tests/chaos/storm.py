"""What goes wrong, drawn from a seed: the same actions in the same order, each time the seed is given."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg

from continuum.testing.postgres import EmbeddedPostgres
from tests.chaos.cluster import Cluster

__all__ = ["Action", "Storm", "actions", "rests", "stops"]

# How often each happens, in shares.
WEIGHTS = {
    "kill": 6,
    "stop shortly": 3,
    "stop past the lease": 4,
    "drain": 5,
    "cut one": 5,
    "cut a kind": 3,
    "cut workers": 2,
    "cut all": 1,
    "kill all": 1,
    "restart": 1,
    "crash": 1,
    "cancel": 3,
    "standby": 1,
    "lock": 4,
    "rest": 2,
}
# The rows that application code holds in a transaction of its own, for a while.
LOCK = """
    SELECT id FROM continuum_runs WHERE owner_id IS NOT NULL
    ORDER BY md5(id::text || %s) LIMIT 20 FOR UPDATE SKIP LOCKED
"""
# What connections are called; those of activities have no name.
KINDS = ("journal", "claims", "lease", "tasks", "outcomes", "maintenance", "listener", "attempts", "fence", "hints", "")


@dataclass(frozen=True)
class Action:
    """Something that goes wrong.

    Attributes:
        kind: what.
        where: a place between 0 and 1 among those it may happen to.
        seconds: how long it takes, where it takes long.
        pause: seconds until the next.
    """

    kind: str
    where: float
    seconds: float
    pause: float

    def __str__(self) -> str:
        return f"{self.kind} ({self.where:.3f}, {self.seconds:.2f} s), then {self.pause:.2f} s"


def actions(seed: int) -> Iterator[Action]:
    """Yield actions without end; they depend on the seed alone."""
    chance = random.Random(seed)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        kind = chance.choices(kinds, weights)[0]
        seconds = chance.uniform(2.3, 5.0) if kind == "stop past the lease" else chance.uniform(0.2, 1.6)
        yield Action(kind, chance.random(), seconds, chance.choice((0.05, 0.2, 0.5, 1.0, 1.0, 2.0)))


def stops(seed: int) -> Iterator[Action]:
    """Yield what tells a fence from none: workers that are stopped past their lease, and go on."""
    chance = random.Random(seed)
    while True:
        yield Action("stop past the lease", chance.random(), chance.uniform(2.5, 3.2), chance.uniform(0.3, 0.9))


def rests() -> Iterator[Action]:
    """Yield nothing that goes wrong."""
    while True:
        yield Action("rest", 0.0, 0.0, 0.5)


class Storm:
    """Carries actions out.

    Args:
        cluster: the workers.
        server: the server they work on.
        size: how many workers there should be.
        say: takes a line for the log.
    """

    def __init__(self, cluster: Cluster, server: EmbeddedPostgres, size: int, say: Callable[[str], None]) -> None:
        self._cluster, self._server, self._size, self._say = cluster, server, size, say
        self._resumptions: list[tuple[float, int]] = []
        self._strangers: list[tuple[float, psycopg.Connection]] = []
        self._promoted_at: float | None = None
        self.did: Counter[str] = cluster.did

    def rage(self, plan: Iterator[Action], until: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Carry out actions until a time of the monotonic clock."""
        while time.monotonic() < until:
            action = next(plan)
            self._say(str(action))
            self._carry_out(action)
            self._cluster.replace_the_fallen(self._size)
            pause = min(until, time.monotonic() + action.pause)
            while (left := pause - time.monotonic()) > 0:
                self._resume_due()
                meanwhile()
                time.sleep(min(left, 0.05))

    def calm(self) -> None:
        """Let everybody go on."""
        if self._promoted_at is not None:
            self._lead_to("RESET default_transaction_read_only")
        for _, stranger in self._strangers:
            stranger.close()
        for member in self._cluster.members:
            self._cluster.resume(member)
        self._cluster.replace_the_fallen(self._size)

    def _resume_due(self) -> None:
        now = time.monotonic()
        for due, number in self._resumptions:
            if due <= now:
                self._cluster.resume(self._cluster.all[number])
        self._resumptions = [entry for entry in self._resumptions if entry[0] > now]
        for due, stranger in self._strangers:
            if due <= now:
                stranger.close()
        self._strangers = [entry for entry in self._strangers if entry[0] > now]
        if self._promoted_at is not None and self._promoted_at <= now:
            self._promoted_at = None
            self._lead_to("RESET default_transaction_read_only")

    def _carry_out(self, action: Action) -> None:
        cluster, where = self._cluster, action.where
        match action.kind:
            case "kill":
                cluster.kill(cluster.pick(where))
            case "kill all":
                for member in list(cluster.members):
                    cluster.kill(member)
            case "drain":
                cluster.drain(cluster.pick(where))
            case "stop shortly" | "stop past the lease":
                # One at least goes on, so that there is somebody to take over.
                if sum(not member.stopped for member in cluster.members) > 1:
                    member = cluster.pick(where)
                    cluster.stop(member)
                    self.did[f"SIGSTOP {'past the lease' if 'past' in action.kind else 'shortly'}"] += 1
                    self._resumptions.append((time.monotonic() + action.seconds, member.number))
            case "cut one":
                self._cut(f"true ORDER BY md5(pid::text || {where}) LIMIT 1")
            case "cut a kind":
                kind = KINDS[int(where * len(KINDS))]
                self._cut(f"application_name LIKE 'continuum {kind}%'" if kind else "application_name = ''")
            case "cut workers":
                self._cut("application_name LIKE 'continuum %'")
            case "cut all":
                self._cut("true")
            case "lock":
                stranger = psycopg.connect(
                    self._server.database_url("chaos"), options="-c default_transaction_read_only=off"
                )
                self._strangers.append((time.monotonic() + action.seconds, stranger))
                self.did["rows of runs locked"] += stranger.execute(LOCK, [str(where)]).rowcount
            case "restart":
                self.did["restart of PostgreSQL"] += 1
                self._server.restart()
            case "crash":
                self.did["crash of PostgreSQL"] += 1
                self._server.restart("immediate")
            case "cancel":
                self._cancel(time.monotonic() + action.seconds / 2)
            case "standby" if self._promoted_at is None:
                # What a failover looks like whose address leads to the new primary before that is one.
                self.did["failover"] += 1
                self._promoted_at = time.monotonic() + action.seconds
                self._lead_to("SET default_transaction_read_only = on")

    def _lead_to(self, setting: str) -> None:
        with psycopg.connect(self._server.database_url(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE chaos {setting}")
        self._cut("true")

    def _cancel(self, until: float) -> None:
        """Have whatever workers are at fail, now and then, as a time limit or an administrator would."""
        with psycopg.connect(self._server.database_url("chaos"), autocommit=True) as connection:
            while time.monotonic() < until:
                cursor = connection.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos' AND state = 'active' "
                    "AND pid <> pg_backend_pid()"
                )
                self.did["statements cancelled"] += cursor.rowcount
                time.sleep(0.01)

    def _cut(self, which: str) -> None:
        with psycopg.connect(self._server.database_url("chaos"), autocommit=True) as connection:
            cursor = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = 'chaos' "
                f"AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND {which}) AS chosen"
            )
            self.did["backends terminated"] += cursor.rowcount
