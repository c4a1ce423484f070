"""A workflow that uses everything there is, short enough to kill its worker at each of its commits."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from continuum import (
    ChildError,
    activity,
    activity_info,
    continue_as_new,
    heartbeat,
    saga,
    set_progress,
    side_effect,
    sleep,
    start_child,
    uuid4,
    wait_signal,
    workflow,
)
from tests.app.models import Effect
from tests.app.workflows import async_add, broken, effect, flaky

__all__ = ["all_there_is"]


@activity(transactional=True)
def once(key: str) -> str:
    """Takes effect exactly once."""
    Effect.objects.create(key=key)
    return key


@activity(heartbeat_timeout=30, timeout=60)
def exports(key: str) -> str:
    """Reports how far it has got, and goes on from there."""
    for step in range(activity_info().heartbeat_details or 0, 3):
        heartbeat(step)
    Effect.objects.create(key=key)
    return key


@workflow
async def adds_up(key: str, numbers: list[int]) -> int:
    await effect(f"{key}:child")
    return sum(await asyncio.gather(*(async_add(number, 0) for number in numbers)))


@workflow
async def breaks_down(key: str) -> None:
    await effect(f"{key}:broken child")
    await broken()


@workflow
async def listens_once(key: str) -> Any:
    await effect(f"{key}:listener")
    return await wait_signal("word", timeout=60)


@workflow
async def all_there_is(key: str, round: int = 1, log: list[Any] | None = None) -> list[Any]:
    """Everything, twice: the second round is another run, which gets the second of two signals."""
    here = f"{key}:{round}"
    set_progress(f"round {round}")
    drawn, token = str(uuid4()), side_effect(os.urandom, 4).hex()
    listener = await start_child(listens_once, here)
    attempts = await flaky(f"{here}:flaky")
    added, child_sum = await asyncio.gather(async_add(1, 2), adds_up(here, [1, 2, 3]))
    paid, exported = await asyncio.gather(once(f"{here}:once:paid"), exports(f"{here}:exported"))
    queued = await asyncio.gather(
        effect.options(queue="slow", priority=5)(f"{here}:queued"),
        flaky.options(queue="slow")(f"{here}:flaky queued"),
        once.options(queue="slow")(f"{here}:once:queued"),
    )
    undone = await books(here)
    await sleep(0.02)
    answer = await wait_signal("answer", timeout=60)
    listener_id = str(listener.id)
    done = await race()
    await effect(f"{here}:last:{drawn}:{token}")
    said = {
        "attempts": attempts,
        "sums": [added, child_sum],
        "queued": queued[1],
        "undone": undone,
        "done": len(paid) > 0 and len(exported) > 0,
        "answer": answer,
        "raced": done,
    }
    log = [*(log or []), said, {"drawn": drawn, "token": token, "listener": listener_id}]
    if round == 1:
        continue_as_new(key, 2, log)
    return log


async def books(here: str) -> str:
    """A saga that fails of a child and is undone."""
    try:
        async with saga():
            await effect(f"{here}:booked").compensated_by(effect.bind(f"{here}:unbooked"))
            await once(f"{here}:once:reserved").compensated_by(once.bind(f"{here}:once:released"))
            await breaks_down(here)
    except ChildError as error:
        return error.state
    return "nothing"


async def race() -> list[bool]:
    tasks = [asyncio.create_task(sleep(delay)) for delay in (0.01, 60)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return [task.done() for task in tasks]
