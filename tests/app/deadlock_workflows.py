"""Workflows that do not let go, until ``mended`` is set."""

from __future__ import annotations

import asyncio
import threading

from continuum import activity, saga, sleep, wait_signal, workflow

mended = False
awake = threading.Event()


@activity
async def step(n: int) -> int:
    return n + 1


@activity
async def unstep(n: int) -> None:
    pass


@workflow
async def computes() -> str:
    while not mended:
        pass
    return "done"


@workflow
async def spins() -> str:
    while not mended:
        await asyncio.sleep(0)
    return "done"


@workflow
async def swallows() -> str:
    """Catches everything, three times."""
    for _ in range(3):
        try:
            while not mended:
                pass
        except BaseException:
            continue
    return "got away with it"


async def _loop() -> None:
    while not mended:
        pass


@workflow
async def loops_in_a_task() -> str:
    forgotten = asyncio.create_task(_loop())
    await asyncio.wait([forgotten])
    return "did not look"


@workflow
async def steps_then_computes() -> int:
    total = await step(1)
    total = await step(total)
    while not mended:
        pass
    return await step(total)


@workflow
async def computes_in_the_middle() -> int:
    """Hangs where a replay passes."""
    total = await step(1)
    while not mended:
        pass
    return await step(total) + await wait_signal("go")


@workflow
async def undoes_its_step() -> None:
    async with saga():
        await step(1).compensated_by(unstep.bind(1))
        if not mended:
            raise LookupError("no")


@workflow
async def loops_when_released() -> None:
    try:
        await sleep(3600)
    finally:
        while not mended:
            pass


@workflow
async def dozes(seconds: float) -> str:
    awake.wait(seconds)  # continuum: allow[D306] it shall block its worker
    return "rested"
