"""The workflows, for Continuum."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime

from benchmarks.contenders.base import MOMENT
from continuum import activity, sleep, sleep_until, wait_signal, workflow


@activity
def add_one(number: int) -> int:
    return number + 1


@activity
def pass_gate(number: int) -> int:
    while not os.path.exists(os.environ["BENCHMARK_GATE"]):
        time.sleep(0.005)
    return number


@activity
def compute(number: int) -> int:
    gate = os.environ["BENCHMARK_GATE"]
    with open(f"{gate}.computing", "wb"):
        pass
    while not os.path.exists(gate):
        number = sum(range(100_000)) + number % 7
    return number


@activity
def in_one_second() -> float:
    return time.time() + 1


@activity
def seconds_since(due: float) -> float:
    return time.time() - due


@activity
def take_a_moment(number: int) -> int:
    with open(f"{os.environ['BENCHMARK_GATE']}.made", "ab", buffering=0) as made:
        made.write(b".")
    time.sleep(0.02)
    return number


@activity
def one_moment(number: int) -> int:
    time.sleep(MOMENT)
    return number + 1


@workflow(name="five_steps")
async def five_steps(number: int) -> int:
    for _ in range(5):
        number = await add_one(number)
    return number


@workflow(name="one_step")
async def one_step(number: int) -> int:
    return await add_one(number)


@workflow(name="computing")
async def computing(number: int) -> int:
    return await compute(number)


@workflow(name="no_step")
async def no_step(number: int) -> int:
    return number + 1


@workflow(name="fan_children")
async def fan_children(count: int) -> int:
    return sum(await asyncio.gather(*[no_step(number) for number in range(count)]))


@workflow(name="fan_steps")
async def fan_steps(count: int) -> int:
    return sum(await asyncio.gather(*[add_one(number) for number in range(count)]))


@workflow(name="many_steps")
async def many_steps(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await add_one(number)
    return await pass_gate(number)


@workflow(name="wait_one")
async def wait_one(number: int) -> int:
    return await wait_signal("go")


@workflow(name="nap")
async def nap(number: int) -> float:
    due = await in_one_second()
    await sleep_until(datetime.fromtimestamp(due, UTC))
    return await seconds_since(due)


@workflow(name="moments")
async def moments(steps: int) -> int:
    number = 0
    for _ in range(steps):
        number = await one_moment(number)
    return number


@workflow(name="paced")
async def paced(steps: int) -> int:
    for number in range(steps):
        await take_a_moment(number)
        await sleep(0.08)
    return steps
