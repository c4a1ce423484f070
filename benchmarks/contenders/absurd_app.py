"""The workflows, for Absurd, and its worker: ``python -m benchmarks.contenders.absurd_app``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from absurd_sdk import Absurd

from benchmarks.contenders.base import MOMENT

QUEUE = "bench"
# Absurd refuses to wait for tasks of the queue that the waiting task is in: parents have one of their own.
PARENTS = "parents"


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


def no_step(params: Any, ctx: Any) -> int:
    return params["number"] + 1


def fan_children(params: Any, ctx: Any) -> int:
    def spawn(number: int) -> str:
        key = f"{ctx.task_id}:{number}"
        return str(app.spawn("no_step", {"number": number}, queue=QUEUE, idempotency_key=key)["task_id"])

    # One step for all: a step for each spawn would cost a thousand checkpoints more.
    children = ctx.step("spawn", lambda: [spawn(number) for number in range(params["number"])])
    return sum(ctx.await_task_result(child, queue_name=QUEUE).result for child in children)


def fan_steps(params: Any, ctx: Any) -> int:
    # A task's steps run one after the other.
    return sum(ctx.step(f"add{number}", lambda number=number: number + 1) for number in range(params["number"]))


def moments(params: Any, ctx: Any) -> int:
    number = 0
    for index in range(params["number"]):
        number = ctx.step(f"moment{index}", lambda number=number: take_a_moment(number))
    return number


def take_a_moment(number: int) -> int:
    time.sleep(MOMENT)
    return number + 1


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


FLOWS = {
    QUEUE: (five_steps, one_step, no_step, fan_steps, many_steps, wait_one, nap, moments),
    PARENTS: (fan_children,),
}

app: Absurd


def main() -> None:
    """Serve a queue, ``bench`` unless the command line names another, until told to stop."""
    global app
    queue = sys.argv[1] if len(sys.argv) > 1 else QUEUE
    app = Absurd(os.environ["BENCHMARK_URL"], queue_name=queue)
    for function in FLOWS[queue]:
        app.register_task(function.__name__)(function)
    signal.signal(signal.SIGTERM, lambda *_: app.stop_worker())
    app.start_worker(**json.loads(os.environ["BENCHMARK_TUNING"]))


if __name__ == "__main__":
    main()
