"""The workflows, for DBOS, and its worker: ``python -m benchmarks.contenders.dbos_app``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time

from dbos import DBOS, DBOSConfig

from benchmarks.contenders.base import MOMENT

QUEUE = "bench"
APPLICATION = "bench"
VERSION = "1"
TUNING = json.loads(os.environ.get("BENCHMARK_TUNING", "{}"))


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


@DBOS.step()
async def add_one_async(number: int) -> int:
    return number + 1


@DBOS.step()
def take_a_moment(number: int) -> int:
    time.sleep(MOMENT)
    return number + 1


@DBOS.workflow(name="no_step")
def no_step(number: int) -> int:
    return number + 1


@DBOS.workflow(name="fan_children")
def fan_children(count: int) -> int:
    handles = [DBOS.enqueue_workflow(QUEUE, no_step, number) for number in range(count)]
    return sum(handle.get_result(**TUNING.get("result", {})) for handle in handles)


@DBOS.workflow(name="fan_steps")
async def fan_steps(count: int) -> int:
    return sum(await asyncio.gather(*[add_one_async(number) for number in range(count)]))


@DBOS.workflow(name="moments")
def moments(count: int) -> int:
    number = 0
    for _ in range(count):
        number = take_a_moment(number)
    return number


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
    """Serve the queue, as the executor that the command line names, until told to stop."""
    executor = sys.argv[1] if len(sys.argv) > 1 else "bench"
    DBOS(config=configuration(os.environ["BENCHMARK_URL"], executor_id=executor, **TUNING.get("config", {})))
    DBOS.launch()
    DBOS.register_queue(QUEUE, **TUNING.get("queue", {}))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    DBOS.destroy()


if __name__ == "__main__":
    main()
