"""Continuum, out of the box."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import filling
from benchmarks.contenders.base import Contender
from benchmarks.server import Address
from continuum.worker import processors

__all__ = ["CLIENT"]

SEARCHES: dict[str, list[tuple[Any, ...]]] = {
    "state": [("eq", "workflow", "shop.workflows.order_flow"), ("eq", "state", "failed")],
    "rare_workflow": [("eq", "workflow", filling.RARE_WORKFLOW), ("eq", "state", "completed")],
    "common": [("eq", ["attributes", "plan"], "pro")],
    "rare": [("eq", ["attributes", "flagged"], True)],
}


def _environment(address: Address) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "benchmarks.contenders.continuum_settings",
        "BENCHMARK_DATABASE": address.name,
        "BENCHMARK_USER": address.user,
        "BENCHMARK_SOCKET": address.socket,
        "BENCHMARK_PORT": address.port,
    }


def _set_up(address: Address) -> None:
    os.environ.update(_environment(address))
    import django

    django.setup()


class Continuum(Contender):
    """The engine of this repository."""

    name = "continuum"
    configurations = {"default": "`manage.py continuum_worker`, every setting at its default"}

    unfinished_query = "SELECT count(*) FROM continuum_runs WHERE state IN ('pending', 'running', 'suspended')"
    waiting_query = "SELECT count(*) FROM continuum_runs WHERE waiting_on::text LIKE '%signal%'"
    records_query = "SELECT count(*) FROM continuum_events"
    step_times_query = (
        "SELECT extract(epoch FROM recorded_at)::float8 FROM continuum_events "
        "WHERE run_id = %s AND name LIKE '%%add_one' ORDER BY seq"
    )
    moments_query = (
        "SELECT run_id::text, extract(epoch FROM recorded_at)::float8 FROM continuum_events "
        "WHERE run_id = ANY(%s::uuid[]) AND type = 'activity_completed'"
    )
    claim_query = "SELECT CASE WHEN owner_id IS NOT NULL THEN lease_token END FROM continuum_runs WHERE id = %s"

    @classmethod
    def install(cls, address: Address) -> None:
        _set_up(address)
        from django.core.management import call_command
        from django.db import connections

        call_command("migrate", verbosity=0)
        connections.close_all()

    def environment(self) -> dict[str, str]:
        return {**_environment(self.address), "BENCHMARK_GATE": self.gate}

    def connect(self) -> None:
        _set_up(self.address)
        import continuum
        from benchmarks.contenders import continuum_flows

        self._api = continuum
        self._flows = continuum_flows

    def spawn(self) -> None:
        options = [f"--processes={self.processes}"] if self.processes else []
        self.workers.spawn("django", "continuum_worker", *options)

    def wait_up(self, nodes: int) -> None:
        alive = "SELECT count(*) FROM continuum_workers WHERE state = 'alive' AND session_lock"
        wanted = nodes * (self.processes or processors.by_default())
        self.observer.wait(lambda: self.observer.value(alive) >= wanted, "the workers are up", timeout=30)

    def start(self, flow: str, number: int) -> str:
        return str(self._api.start(getattr(self._flows, flow), number).id)

    def start_many(self, flow: str, numbers: Sequence[int]) -> list[str]:
        return [str(run.id) for run in self._api.start_many(getattr(self._flows, flow), numbers)]

    def hold(self, flow: str, numbers: Sequence[int]) -> tuple[list[str], Callable[[], None]]:
        from django.db import transaction

        atomic = transaction.atomic()
        atomic.__enter__()
        runs = self.start_many(flow, numbers)
        return runs, lambda: atomic.__exit__(None, None, None)

    def result(self, run: str, timeout: float = 60.0) -> Any:
        return self._api.result(run, timeout=timeout)

    def results(self, runs: Sequence[str]) -> list[Any]:
        rows = self.observer.rows(
            "SELECT id::text, state, result::text FROM continuum_runs WHERE id = ANY(%s::uuid[])", (list(runs),)
        )
        ended = {run: json.loads(result) if state == "completed" else state for run, state, result in rows}
        return [ended.get(run) for run in runs]

    def signal(self, run: str, number: int) -> None:
        self._api.signal(run, "go", number)

    def made(self) -> int:
        """Return how many steps of ``paced`` were made, each counted as often as it was."""
        counted = Path(f"{self.gate}.made")
        return counted.stat().st_size if counted.exists() else 0

    def fill(self, size: int) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            filling.fill(cursor, size)

    def search(self, kind: str) -> int | None:
        return len(self._api.query(where=SEARCHES[kind], per_page=50).entries)

    def disconnect(self) -> None:
        from django.db import connections

        connections.close_all()


CLIENT = Continuum
