"""A workflow that uses everything and bears that any statement of its activities fails, however often."""

from __future__ import annotations

import asyncio

from continuum import Retry, activity, continue_as_new, sleep, wait_signal, workflow
from tests.app.models import Effect

__all__ = ["weathers"]

PATIENT = Retry(max_attempts=1000, base=0.02, max_delay=0.2)


@activity(retry=PATIENT)
def leaves(key: str) -> str:
    """Leaves a row behind each time its body runs: at least one."""
    Effect.objects.create(key=f"{key}:any")
    return key


@activity(retry=PATIENT)
async def adds(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@activity(retry=PATIENT, transactional=True)
def leaves_once(key: str) -> str:
    Effect.objects.create(key=f"{key}:once")
    return key


def _shared(key: str) -> str:
    return key


@activity(retry=PATIENT, transactional=True, idempotency_key=_shared)
def leaves_once_for_all(key: str) -> str:
    Effect.objects.create(key=f"{key}:once")
    return key


@activity(retry=PATIENT, idempotency_key=_shared)
def leaves_for_all(key: str) -> int:
    """The first result under a key is everybody's."""
    return Effect.objects.create(key=f"{key}:any").pk


@workflow
async def sums(key: str, numbers: list[int]) -> int:
    await leaves(f"{key}:child")
    return sum(await asyncio.gather(*(adds(number, 0) for number in numbers)))


@workflow
async def weathers(key: str, shared: str, round: int = 1, log: list | None = None) -> list:
    """Two rounds; returns what both have seen."""
    here = f"{key}:{round}"
    await leaves(here)
    child, added = await asyncio.gather(sums(here, [1, 2, 3]), adds(1, 2))
    await leaves_once(f"{here}:local")
    await asyncio.gather(
        leaves.options(queue="slow", priority=5)(f"{here}:queued"),
        leaves_once.options(queue="slow")(f"{here}:queued"),
    )
    common = await leaves_for_all(f"{shared}:plain")
    await leaves_once_for_all(f"{shared}:strict")
    await sleep(0.05)
    answer = await wait_signal("answer", timeout=120)
    log = [*(log or []), [child, added, answer, common]]
    if round == 1:
        continue_as_new(key, shared, 2, log)
    return log
