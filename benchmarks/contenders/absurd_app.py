"""The workflows, for Absurd, and its worker: ``python -m benchmarks.contenders.absurd_app``."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from absurd_sdk import Absurd

QUEUE = "bench"


def pass_gate() -> bool:
    while not os.path.exists(os.environ["BENCHMARK_GATE"]):
        time.sleep(0.005)
    return True


def five_steps(params: Any, ctx: Any) -> int:
    number = params["number"]
    for index in range(5):
        number = ctx.step(f"add{index}", lambda number=number: number + 1)
    return number


def one_step(params: Any, ctx: Any) -> int:
    return ctx.step("add", lambda: params["number"] + 1)


def many_steps(params: Any, ctx: Any) -> int:
    number = 0
    for _ in range(params["number"]):
        number = ctx.step("add_one", lambda number=number: number + 1)
    ctx.step("gate", pass_gate)
    return number


def wait_one(params: Any, ctx: Any) -> int:
    return ctx.await_event(f"go:{ctx.task_id}")


def nap(params: Any, ctx: Any) -> float:
    due = ctx.step("due", lambda: time.time() + 1)
    ctx.sleep_until("nap", due)
    return ctx.step("late", lambda: time.time() - due)


FLOWS = {function.__name__: function for function in (five_steps, one_step, many_steps, wait_one, nap)}


def main() -> None:
    """Serve the queue until told to stop."""
    app = Absurd(os.environ["BENCHMARK_URL"], queue_name=QUEUE)
    for name, function in FLOWS.items():
        app.register_task(name)(function)
    signal.signal(signal.SIGTERM, lambda *_: app.stop_worker())
    app.start_worker(**json.loads(os.environ["BENCHMARK_TUNING"]))


if __name__ == "__main__":
    main()
