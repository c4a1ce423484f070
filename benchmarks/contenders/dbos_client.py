"""DBOS Transact, as its documentation has it and tuned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contenders.base import Contender
from benchmarks.processes import ROOT
from benchmarks.server import Address

__all__ = ["CLIENT"]

QUEUE = "bench"
RESULT_POLL = 0.002
FAST_POLL = 0.01

# For throughput, a few workers with a connection each beat one for every run, and more processes beat one. To sleep or
# to wait, each run needs a worker: there the number is not limited. Found by trying: see the README.
TUNING: dict[str, Any] = {"processes": 1, "config": {}, "queue": {"polling_interval_sec": FAST_POLL}}
TUNING_THROUGHPUT: dict[str, Any] = {
    "processes": 3,
    "config": {"sys_db_pool_size": 20},
    "queue": {"polling_interval_sec": FAST_POLL, "worker_concurrency": 10},
}


class Dbos(Contender):
    """DBOS Transact for Python."""

    name = "dbos"
    configurations = {
        "default": "one executor, a queue with its defaults (polled every second), `get_result()`",
        "tuned": "queue polled every 10 ms, results every 2 ms; W1: 3 executors of 10 workers each",
    }

    unfinished_query = "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('PENDING', 'ENQUEUED', 'DELAYED')"
    waiting_query = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'PENDING' AND name = 'wait_one'"
    records_query = "SELECT count(*) FROM dbos.operation_outputs"
    step_times_query = (
        "SELECT completed_at_epoch_ms / 1000.0::float8 FROM dbos.operation_outputs WHERE workflow_uuid = %s "
        "ORDER BY function_id"
    )
    claim_query = "SELECT recovery_attempts FROM dbos.workflow_status WHERE workflow_uuid = %s"

    @classmethod
    def install(cls, address: Address) -> None:
        command = [sys.executable, "-m", "dbos.cli.cli", "migrate", "--sys-db-url", _url(address)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)

    def environment(self) -> dict[str, str]:
        return {
            "BENCHMARK_URL": _url(self.address),
            "BENCHMARK_GATE": self.gate,
            "BENCHMARK_TUNING": json.dumps(self._tuning),
        }

    @property
    def _tuning(self) -> dict[str, Any]:
        if not self.tuned:
            return {"processes": 1}
        return TUNING_THROUGHPUT if self.workload in ("w1", "w1d") else TUNING

    def connect(self) -> None:
        import sqlalchemy
        from dbos import DBOSClient

        self._client = DBOSClient(system_database_url=_url(self.address))
        self._engine = sqlalchemy.create_engine(_url(self.address))

    def spawn(self) -> None:
        for _ in range(self._tuning["processes"]):
            self.workers.spawn("benchmarks.contenders.dbos_app")

    def start(self, flow: str, number: int) -> str:
        return self._client.enqueue(_options(flow), number).get_workflow_id()

    def start_many(self, flow: str, numbers: Sequence[int]) -> list[str]:
        runs, release = self.hold(flow, numbers)
        release()
        return runs

    def hold(self, flow: str, numbers: Sequence[int]) -> tuple[list[str], Callable[[], None]]:
        connection = self._engine.connect()
        options = _options(flow)
        handles = [self._client.enqueue_in_transaction(connection, options, number) for number in numbers]

        def release() -> None:
            connection.commit()
            connection.close()

        return [handle.get_workflow_id() for handle in handles], release

    def result(self, run: str, timeout: float = 60.0) -> Any:
        handle = self._client.retrieve_workflow(run)
        return handle.get_result(polling_interval_sec=RESULT_POLL) if self.tuned else handle.get_result()

    def results(self, runs: Sequence[str]) -> list[Any]:
        listed = self._client.list_workflows(workflow_ids=list(runs), load_input=False, load_output=True)
        ended = {w.workflow_id: w.output if w.status == "SUCCESS" else w.status for w in listed}
        return [ended.get(run) for run in runs]

    def signal(self, run: str, number: int) -> None:
        self._client.send(run, number, "go")

    def disconnect(self) -> None:
        self._client.destroy()
        self._engine.dispose()


def _options(flow: str) -> Any:
    return {"queue_name": QUEUE, "workflow_name": flow}


def _url(address: Address) -> str:
    return address.url.replace("postgresql://", "postgresql+psycopg://", 1)


CLIENT = Dbos
