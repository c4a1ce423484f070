"""The workflows, for DBOS, and its worker: ``python -m benchmarks.contenders.dbos_app``."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

from dbos import DBOS, DBOSConfig

QUEUE = "bench"
APPLICATION = "bench"
VERSION = "1"


@DBOS.step()
def add_one(number: int) -> int:
    return number + 1


@DBOS.step()
def pass_gate(number: int) -> int:
    while not os.path.exists(os.environ["BENCHMARK_GATE"]):
        time.sleep(0.005)
    return number


@DBOS.step()
async def in_one_second() -> float:
    return time.time() + 1


@DBOS.step()
async def seconds_since(due: float) -> float:
    return time.time() - due


@DBOS.workflow(name="five_steps")
def five_steps(number: int) -> int:
    for _ in range(5):
        number = add_one(number)
    return number


@DBOS.workflow(name="one_step")
def one_step(number: int) -> int:
    return add_one(number)


@DBOS.workflow(name="many_steps")
def many_steps(count: int) -> int:
    number = 0
    for _ in range(count):
        number = add_one(number)
    return pass_gate(number)


@DBOS.workflow(name="wait_one")
def wait_one(number: int) -> int:
    return DBOS.recv("go", timeout_seconds=600)


@DBOS.workflow(name="nap")
async def nap(number: int) -> float:
    # A coroutine: as threads, some hundred of them wake each other up late.
    due = await in_one_second()
    await DBOS.sleep_async(max(0.0, due - time.time()))
    return await seconds_since(due)


def configuration(url: str, **options: object) -> DBOSConfig:
    """Return the configuration of an executor."""
    return DBOSConfig(
        name=APPLICATION, system_database_url=url, application_version=VERSION, log_level="ERROR", **options
    )


def main() -> None:
    """Serve the queue until told to stop."""
    tuning = json.loads(os.environ["BENCHMARK_TUNING"])
    DBOS(config=configuration(os.environ["BENCHMARK_URL"], executor_id="bench", **tuning.get("config", {})))
    DBOS.launch()
    DBOS.register_queue(QUEUE, **tuning.get("queue", {}))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    DBOS.destroy()


if __name__ == "__main__":
    main()
