"""Workflows whose activities go through queues."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from continuum import NonRetryableError, Retry, activity, activity_info, sleep, wait_signal, workflow
from tests.app import attempt_workflows


def mark(key: str) -> None:
    from tests.app.models import Effect

    Effect.objects.create(key=key)


@activity(queue="mail")
def post(key: str) -> str:
    """Leaves a row behind each time its body runs, with the process that ran it."""
    mark(f"{key}:{os.getpid()}")
    return key


@activity(queue="mail")
async def post_async(key: str) -> str:
    await asyncio.sleep(0)
    return key


@activity
def plain(key: str) -> str:
    mark(f"{key}:{os.getpid()}")
    return key


@activity(queue="mail")
def given(value: Any) -> Any:
    return value


@activity(queue="mail", retry=Retry(max_attempts=3, base=0.02))
def unsteady(key: str) -> int:
    mark(f"{key}:{activity_info().attempt}")
    if activity_info().attempt < 3:
        raise ConnectionError("not yet")
    return activity_info().attempt


class Refused(NonRetryableError):
    pass


@activity(queue="mail", retry=Retry(max_attempts=5, base=0.01, non_retryable=(LookupError,)))
def refuses(kind: str) -> None:
    raise KeyError(kind) if kind == "listed" else Refused(kind)


@activity(queue="mail", retry=Retry(max_attempts=10, base=3600, max_delay=3600))
def much_later(key: str) -> None:
    mark(key)
    raise ConnectionError("come back in an hour")


@activity(queue="mail", retry=Retry(max_attempts=1000, base=0.6, backoff="constant", horizon=2.5))
def within_horizon() -> None:
    raise ConnectionError("never")


@activity(queue="mail")
def gated(key: str, path: str) -> str:
    """Runs until a file exists."""
    mark(f"{key}:begun")
    while not os.path.exists(path):
        time.sleep(0.01)
    mark(f"{key}:ended")
    return key


@activity(queue="mail")
async def gated_async(key: str, path: str) -> str:
    from tests.app.models import Effect

    await Effect.objects.acreate(key=f"{key}:begun")
    try:
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        await Effect.objects.acreate(key=f"{key}:cancelled")
        raise
    return key


@activity(queue="mail", timeout=0.1)
async def too_slow() -> None:
    await asyncio.sleep(30)


@activity(queue="mail")
def kills_claimer(key: str) -> str:
    """Kills the process it runs in, every time."""
    mark(key)
    os.kill(os.getpid(), signal.SIGKILL)
    return "not reached"


@activity(queue="few")
def interval(key: str, seconds: float) -> None:
    """Records when it ran, from the first line of the body to the last."""
    began = time.time()
    time.sleep(seconds)
    mark(f"{key}:{began!r}:{time.time()!r}")


@workflow
async def posts(key: str) -> str:
    return await post(key)


@workflow
async def posts_many(key: str, count: int) -> int:
    return len(await asyncio.gather(*(post(f"{key}:{i}") for i in range(count))))


@workflow
async def posts_many_async(count: int) -> int:
    return len(await asyncio.gather(*(post_async(str(i)) for i in range(count))))


@workflow
async def passes_on(value: Any) -> Any:
    return await given(value)


@workflow
async def overrides(key: str, options: dict) -> str:
    return await plain.options(**options)(key)


@workflow
async def insists() -> int:
    return await unsteady("u")


@workflow
async def is_refused(kind: str) -> None:
    await refuses(kind)


@workflow
async def postpones(key: str) -> None:
    await much_later(key)


@workflow
async def expires() -> None:
    await within_horizon()


@workflow
async def waits_at_gate(key: str, path: str) -> str:
    return await gated(key, path)


@workflow
async def gives_up_waiting(key: str, path: str) -> str:
    try:
        async with asyncio.timeout(None) as limit:
            waiting = asyncio.create_task(gated_async(key, path))
            await wait_signal("enough")
            limit.reschedule(0)
            waiting.cancel()
            await waiting
    except (TimeoutError, asyncio.CancelledError):  # continuum: allow[D702] it shall go on
        pass
    await wait_signal("end")
    return "gave up"


@workflow
async def runs_out_of_time() -> None:
    await too_slow()


@workflow
async def is_poison(key: str) -> str:
    return await kills_claimer(key)


@workflow
async def intervals(key: str, count: int, seconds: float) -> None:
    await asyncio.gather(*(interval(f"{key}:{i}", seconds) for i in range(count)))


@workflow
async def by_priority(levels: list[int]) -> None:
    await asyncio.gather(*(post.options(priority=level)(f"p:{level}") for level in levels))


@workflow
async def asks_and_ends(key: str) -> str:
    """Ends while its activity still runs elsewhere."""
    asked = asyncio.create_task(post(key))
    await sleep(0)
    return "done" if not asked.done() else "too late"


@activity
def nap(key: str, seconds: float) -> str:
    mark(f"{key}:{os.getpid()}")
    time.sleep(seconds)
    return key


@workflow
async def naps_in_parallel(key: str, count: int, seconds: float) -> int:
    return len(await asyncio.gather(*(nap(f"{key}:{i}", seconds) for i in range(count))))


@activity
def stand(key: str, path: str) -> str:
    """Takes up a thread until a file exists."""
    mark(f"{key}:{os.getpid()}")
    while not os.path.exists(path):
        time.sleep(0.01)
    return key


@workflow
async def stands_in_parallel(key: str, count: int, path: str) -> int:
    return len(await asyncio.gather(*(stand(f"{key}:{i}", path) for i in range(count))))


@workflow
async def through_queue(name: str, *args: Any) -> Any:
    """Runs an activity of the other modules by way of a queue."""
    return await getattr(attempt_workflows, name).options(queue="mail")(*args)


@workflow
async def through_queue_while_wanted(name: str, *args: Any) -> str:
    asked = asyncio.create_task(getattr(attempt_workflows, name).options(queue="mail")(*args))
    await wait_signal("enough")
    asked.cancel()
    await wait_signal("end")
    return "gave up"
