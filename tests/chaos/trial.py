"""One trial: clients, workers and a storm, then calm, then the questions."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from django.db import connection
from tqdm import tqdm

import continuum
from continuum.models import Run
from continuum.testing.postgres import EmbeddedPostgres
from tests.chaos import checks
from tests.chaos.ambush import Ambush
from tests.chaos.cluster import Cluster
from tests.chaos.load import Client
from tests.chaos.storm import Storm, actions, rests, stops
from tests.chaos.takeover import TakeOver
from tests.chaos.workflows import KINDS
from tests.waiting_for import eventually

__all__ = ["Trial"]

CLIENTS = 2
MOST_SHOWN = 25
# Within so many seconds the runs of a killed worker are free for others, whatever goes wrong meanwhile. The lease ends
# after two; the rest is for machines with other work.
LONGEST_TAKE_OVER = 30.0
MOST_DEADLINES = 5
# Runs that ask for many places in queues, started at once where nobody counts these.
RUSH = 12


class Trial:
    """Everything under one seed.

    Args:
        seed: of the storm and of the clients.
        options: of the command line.
        server: the server, with a database ``chaos`` that has the tables.
        logs: directory for logs.
    """

    def __init__(self, seed: int, options: argparse.Namespace, server: EmbeddedPostgres, logs: Path) -> None:
        self.seed, self.options, self.server, self.logs = seed, options, server, logs
        self._began = time.monotonic()
        self.seconds = options.minutes * 60
        self.runs = options.runs or int(15 * self.seconds)
        self._log = (logs / "actions.log").open("w")

    def run(self) -> int:
        """Carry it out; returns 1 if something that must hold does not."""
        print(f"chaos with --seed {self.seed}, logs in {self.logs}", flush=True)
        take_over = TakeOver(self.server.database_url("chaos"), LONGEST_TAKE_OVER)
        ambush = Ambush(self._say) if self.options.ambush else None
        cluster = Cluster(self.logs, self.options.broken, take_over.about_to_kill)
        for _ in range(self.options.workers):
            cluster.start()
        clients = [
            Client(f"c{n}", self.seed, self.runs // CLIENTS + (n < self.runs % CLIENTS), self.seconds * 0.95)
            for n in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        storm = Storm(cluster, self.server, self.options.workers, self._say)
        if ambush is not None:
            ambush.spring(cluster)
        else:
            self._rage(storm)
        found = self._settle(storm, clients)
        cluster.close()
        connection.close()
        stories = [story for client in clients for story in client.stories]
        take_over.close()
        found += cluster.violations + checks.violations(stories) + take_over.violations
        found += [f"client {client.name} failed: {client.failure!r}" for client in clients if client.failure]
        found += [what for client in clients for what in client.violations]
        self._report(cluster, stories, take_over, found)
        return 1 if found else 0

    def _rage(self, storm: Storm) -> None:
        match self.options.broken:
            case None:
                plan = actions(self.seed)
            case "limits":
                plan = rests()
                for n in range(RUSH):
                    continuum.start(KINDS["queues_up"], f"rush-{n}")
            case _:
                plan = stops(self.seed)
        with tqdm(total=round(self.seconds), unit="s", disable=not sys.stdout.isatty()) as bar:
            began = time.monotonic()
            storm.rage(plan, began + self.seconds, lambda: bar.update(int(time.monotonic() - began) - bar.n))

    def _settle(self, storm: Storm, clients: list[Client]) -> list[str]:
        self._say("calm")
        storm.calm()
        calm = time.monotonic()
        try:
            connection.close()  # one of those that the storm has cut
            self._wait_for_the_end(lambda: not checks.unfinished() and not any(c.is_alive() for c in clients))
        except AssertionError as error:
            connection.close()
            return [f"{error}\n{checks.describe_stuck()}"]
        finally:
            self.calm_took = time.monotonic() - calm
        return []

    def _wait_for_the_end(self, is_over: Callable[[], bool]) -> None:
        """Wait for as long as runs end: a machine that has little time for us makes it late, not wrong."""
        for _ in range(MOST_DEADLINES):
            before = checks.unfinished()
            with suppress(AssertionError):
                eventually(is_over, self.options.deadline)
                return
            left = checks.unfinished()
            if left >= before:
                break
        raise AssertionError(f"{left} runs do not end, of {before} that had not {self.options.deadline:g} s before")

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:8.2f}  {what}", file=self._log, flush=True)

    def _report(self, cluster: Cluster, stories: list, take_over: TakeOver, found: list[str]) -> None:
        states = Counter(Run.objects.values_list("state", flat=True))
        print(f"survived: {', '.join(f'{count} x {what}' for what, count in sorted(cluster.did.items()) if count)}")
        print(
            f"{len(stories)} runs started by clients; in the end {dict(states)}; "
            f"over {self.calm_took:.1f} s after the calm"
        )
        print(take_over)
        events = Counter(dict(checks.rows("SELECT type, count(*) FROM continuum_events GROUP BY 1")))
        print(f"{events.total()} events: {', '.join(f'{count} {kind}' for kind, count in events.most_common())}")
        for what in found[:MOST_SHOWN]:
            print(f"VIOLATION: {what}")
        if len(found) > MOST_SHOWN:
            print(f"and {len(found) - MOST_SHOWN} more")
        if found:
            print(
                f"repeat with: python -m tests.chaos --seed {self.seed} --minutes {self.options.minutes:g} "
                f"--workers {self.options.workers} --runs {self.runs}"
                f"{' --ambush' * self.options.ambush}"
                f"{f' --broken {self.options.broken}' if self.options.broken else ''}"
            )
