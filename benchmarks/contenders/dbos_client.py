"""DBOS Transact, as its documentation has it and tuned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from benchmarks import filling
from benchmarks.contenders.base import Contender
from benchmarks.processes import ROOT
from benchmarks.server import Address

__all__ = ["CLIENT"]

QUEUE = "bench"
RESULT_POLL = 0.002
FAST_POLL = 0.01

# For throughput, a few workers with a connection each beat one for every run, and more processes beat one. To sleep or
# to wait, each run needs a worker: there the number is not limited. Found by trying: see the README.
TUNING: dict[str, Any] = {
    "processes": 1,
    "config": {},
    "queue": {"polling_interval_sec": FAST_POLL},
    "result": {"polling_interval_sec": RESULT_POLL},
}
TUNING_THROUGHPUT: dict[str, Any] = {
    **TUNING,
    "processes": 3,
    "config": {"sys_db_pool_size": 20},
    "queue": {"polling_interval_sec": FAST_POLL, "worker_concurrency": 10},
}


SEARCHES: dict[str, dict[str, Any]] = {
    "state": {"name": "shop.workflows.order_flow", "status": "ERROR"},
    "rare_workflow": {"name": filling.RARE_WORKFLOW, "status": "SUCCESS"},
    "common": {"attributes": {"plan": "pro"}},
    "rare": {"attributes": {"flagged": True}},
}
FILLED = (
    """
    INSERT INTO dbos.workflow_status
    SELECT (jsonb_populate_record(model, jsonb_build_object(
        'workflow_uuid', sample.id, 'name', sample.workflow, 'executor_id', 'bench', 'recovery_attempts', 1,
        'status', CASE sample.state WHEN 'completed' THEN 'SUCCESS' WHEN 'failed' THEN 'ERROR' ELSE 'CANCELLED' END,
        'attributes', CASE WHEN sample.attributes <> '{{}}' THEN sample.attributes END,
        'created_at', (extract(epoch FROM sample.started_at) * 1000)::bigint,
        'updated_at', (extract(epoch FROM sample.started_at + sample.took) * 1000)::bigint,
        'completed_at', (extract(epoch FROM sample.started_at + sample.took) * 1000)::bigint
    ))).*
    FROM ({sample}) AS sample CROSS JOIN dbos.workflow_status AS model
    WHERE model.workflow_uuid = %(model)s
    """,
    """
    INSERT INTO dbos.workflow_input (workflow_uuid, inputs, retention_timestamp)
    SELECT status.workflow_uuid, model.inputs, status.created_at
    FROM dbos.workflow_status AS status CROSS JOIN dbos.workflow_input AS model
    WHERE model.workflow_uuid = %(model)s AND status.workflow_uuid <> %(model)s
    """,
    """
    INSERT INTO dbos.workflow_output (workflow_uuid, output, retention_timestamp)
    SELECT workflow_uuid, %(output)s, created_at FROM dbos.workflow_status WHERE status = 'SUCCESS'
    """,
    "VACUUM (ANALYZE) dbos.workflow_status, dbos.workflow_input, dbos.workflow_output",
)


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
    moments_query = (
        "SELECT workflow_uuid, completed_at_epoch_ms / 1000.0::float8 FROM dbos.operation_outputs "
        "WHERE workflow_uuid = ANY(%s) AND completed_at_epoch_ms IS NOT NULL"
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
        return TUNING_THROUGHPUT if self.workload in ("w1", "w1d", "w4") else TUNING

    def connect(self) -> None:
        import sqlalchemy
        from dbos import DBOSClient

        self._client = DBOSClient(system_database_url=_url(self.address))
        self._spawned = 0
        self._engine = sqlalchemy.create_engine(_url(self.address))

    def spawn(self) -> None:
        for _ in range(self._tuning["processes"]):
            # For W8 each needs a name of its own: an executor takes up again what one of its name has left.
            executor = f"bench{self._spawned}" if self.workload == "w8" else "bench"
            self.workers.spawn("benchmarks.contenders.dbos_app", executor)
            self._spawned += 1

    def bring_back(self) -> None:
        # No other executor takes up the runs of one that is gone: the same one has to come back.
        self._spawned = 0
        self.spawn()

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

    def fill(self, size: int) -> None:
        from dbos._serialization import DefaultSerializer

        # A row that it has made itself tells what stands where that is of no interest here.
        parameters = {
            "model": self.start("one_step", 0),
            "output": DefaultSerializer().serialize({"state": "shipped", "receipt": "ch_1234567"}),
        }
        with psycopg.connect(self.address.url, autocommit=True) as connection, connection.cursor() as cursor:
            filling.fill_from(cursor, FILLED, size, parameters)

    def search(self, kind: str) -> int | None:
        return len(self._client.list_workflows(**SEARCHES[kind], limit=50, sort_desc=True))

    def disconnect(self) -> None:
        self._client.destroy()
        self._engine.dispose()


def _options(flow: str) -> Any:
    return {"queue_name": QUEUE, "workflow_name": flow}


def _url(address: Address) -> str:
    return address.url.replace("postgresql://", "postgresql+psycopg://", 1)


CLIENT = Dbos
