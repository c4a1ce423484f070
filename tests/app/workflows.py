"""Workflows that tests share; found by autodiscovery, so that worker processes know them too."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from continuum import (
    NonRetryableError,
    Retry,
    activity,
    activity_info,
    now,
    random,
    run_info,
    set_progress,
    side_effect,
    sleep,
    uuid4,
    wait_signal,
    workflow,
)
from tests.app import (
    attempt_workflows,
    deadlock_workflows,
    drain_workflows,
    family_workflows,
    poison_workflows,
    queue_workflows,
    unrepeatable_workflows,
)

# So that worker processes know them too.
__all__ = [
    "attempt_workflows",
    "deadlock_workflows",
    "drain_workflows",
    "family_workflows",
    "poison_workflows",
    "queue_workflows",
    "unrepeatable_workflows",
]


@dataclass
class Order:
    id: str
    total: Decimal


def _mark(key: str) -> None:
    from tests.app.models import Effect

    Effect.objects.create(key=key)


@activity
def add(a: int, b: int) -> int:
    return a + b


@activity
def effect(key: str) -> str:
    """Leaves a row behind each time its body runs."""
    _mark(key)
    return key


@activity
async def async_add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@activity(retry=Retry(max_attempts=3, base=0.01))
def flaky(key: str) -> int:
    """Fails twice, then returns the number of the attempt."""
    _mark(f"{key}:{activity_info().attempt}")
    if activity_info().attempt < 3:
        raise ConnectionError("not yet")
    return activity_info().attempt


@activity(retry=Retry(max_attempts=5, base=0.01))
def hopeless() -> None:
    raise NonRetryableError("no use")


@activity
def broken() -> None:
    raise LookupError("nothing here")


@activity(timeout=0.05, retry=Retry(max_attempts=2, base=0.01))
async def slow() -> None:
    await asyncio.sleep(30)


@activity
def undurable() -> Any:
    return lambda: None


@activity
def hold(key: str, path: str) -> str:
    """Runs until a file exists."""
    _mark(key)
    while not os.path.exists(path):
        time.sleep(0.01)
    return key


@activity
def order_total(order: Order) -> Order:
    return Order(order.id, order.total * 2)


@workflow
async def echo(value: Any) -> Any:
    return value


@workflow
async def five_steps(n: int) -> int:
    for _ in range(5):
        n = await add(n, 1)
    return n


@workflow
async def effects(prefix: str, count: int) -> list[str]:
    return [await effect(f"{prefix}:{i}") for i in range(count)]


@workflow
async def fan_out(n: int) -> int:
    return sum(await asyncio.gather(*(async_add(i, 1) for i in range(n))))


@workflow
async def naps(seconds: float) -> str:
    before = now()
    await sleep(seconds)
    return "late" if now() - before >= timedelta(seconds=seconds) else "early"


@workflow
async def listens(timeout: float | None = None) -> Any:
    try:
        return await wait_signal("go", timeout=timeout)
    except TimeoutError:
        return "timed out"


@workflow
async def listens_for_two() -> list:
    return [await wait_signal("first"), await wait_signal("second")]


@workflow
async def listens_for_many(count: int) -> list:
    return await asyncio.gather(*(wait_signal(f"word {n}") for n in range(count)))


@workflow(signals={"approved": dict})
async def contract() -> dict:
    return await wait_signal("approved")


@workflow
async def collects(count: int) -> list:
    return [await wait_signal("item") for _ in range(count)]


@workflow
async def tries(key: str) -> int:
    return await flaky(key)


@workflow
async def gives_up() -> None:
    await hopeless()


@workflow
async def fails() -> None:
    await broken()


@workflow
async def raises(message: str) -> None:
    raise ValueError(message)


@workflow
async def times_out() -> None:
    await slow()


@workflow
async def returns_undurable() -> Any:
    await add(1, 1)
    return {"lines": [1, {"fn": print}]}  # continuum: allow[D801] never called


@workflow
async def gets_undurable() -> Any:
    return await undurable()


@workflow
async def totals(order: Order) -> Order:
    return await order_total(order)


@workflow
async def reports_progress() -> str:
    set_progress({"done": 1})
    return await wait_signal("go")


@workflow
async def cleans_up(key: str) -> str:
    try:
        await wait_signal("never")
    finally:
        await effect(f"{key}:cleaned")
    return "not reached"


@workflow
async def shrugs_off_cancel() -> str:
    try:
        await wait_signal("never")
    except asyncio.CancelledError:  # continuum: allow[D702] it shall go on
        return "cancelled, and so what"


@workflow
async def draws() -> list[str]:
    """Everything that must be the same again after a crash, with steps in between."""
    first = [str(uuid4()), repr(random()), now().isoformat(), str(side_effect(os.urandom, 8).hex())]
    await effect(f"{run_info().run_id}:draws")
    second = [str(uuid4()), repr(random()), now().isoformat()]
    await wait_signal("go")
    return first + second


@workflow
async def holds(key: str, path: str) -> str:
    await effect(f"{key}:before")
    held = await hold(f"{key}:held", path)
    await effect(f"{key}:after")
    return held


@activity
def kill_worker(key: str) -> str:
    """Kills the process it runs in, the first time."""
    from tests.app.models import Effect

    if not Effect.objects.filter(key=key).exists():
        _mark(key)
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@workflow
async def kills_its_worker(key: str) -> str:
    await effect(f"{key}:before")
    verdict = await kill_worker(key)
    await effect(f"{key}:after")
    return verdict


@workflow
async def everything(key: str) -> dict:
    """A bit of all: used where workers are killed at random."""
    set_progress("begun")
    drawn = str(uuid4())
    token = side_effect(os.urandom, 4).hex()
    await effect(f"{key}:first")
    attempts = await flaky(f"{key}:flaky")
    a, b = await asyncio.gather(add(1, 2), async_add(3, 4))
    async with asyncio.timeout(60):
        await asyncio.gather(*(effect(f"{key}:fan:{i}") for i in range(3)))
    await asyncio.sleep(0.05)
    answer = await wait_signal("answer", timeout=600)
    done, _ = await asyncio.wait(
        [asyncio.create_task(sleep(0.01)), asyncio.create_task(sleep(60))], return_when=asyncio.FIRST_COMPLETED
    )
    await effect(f"{key}:last:{drawn}:{token}")
    return {"attempts": attempts, "sum": a + b, "answer": answer, "raced": len(done), "drawn": drawn, "token": token}


@workflow
async def counts(n: int) -> int:
    total = 0
    for _ in range(n):
        total = await add(total, 1)
    return total
