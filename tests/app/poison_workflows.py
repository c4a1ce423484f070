"""Workflows that take their worker with them, unless the file ``stop`` tames them; and the innocents beside them."""

from __future__ import annotations

import asyncio
import os
import signal
import time

# What crashes a process is no I/O that a guard could stop: taken here, these are not guarded later.
from os import access, kill as send_signal, open as open_file

from continuum import activity, sleep, wait_signal, workflow
from tests.app.models import Effect


def _die(stop: str) -> None:
    if not access(stop, os.F_OK):  # continuum: allow[D301] it shall outlive the process
        send_signal(os.getpid(), signal.SIGKILL)  # continuum: allow[D304, D402] it shall kill its worker


@activity
def kill(stop: str, after: float = 0.0) -> str:
    time.sleep(after)
    _die(stop)
    return "tame"


@activity
def mark(key: str) -> str:
    Effect.objects.create(key=key)
    return key


@activity
async def takes(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@activity(queue="elsewhere")
def far(key: str) -> str:
    Effect.objects.create(key=key)
    return key


@workflow
async def kills_in_activity(stop: str, after: float = 0.0) -> str:
    return await kill(stop, after)


@workflow
async def kills_in_code(stop: str) -> str:
    _die(stop)
    return "tame"


@workflow
async def kills_when_told(stop: str) -> str:
    await wait_signal("go")
    _die(stop)
    return "tame"


@workflow
async def kills_after_a_nap(stop: str, seconds: float) -> str:
    await sleep(seconds)
    _die(stop)
    return "tame"


@workflow
async def kills_at_every_step(stop: str, steps: int) -> int:
    """Each life gets one step further: never poison."""
    for n in range(steps):
        await mark(f"{stop}:{n}")
        if not access(f"{stop}.{n}", os.F_OK):  # continuum: allow[D301] it shall outlive the process
            os.close(open_file(f"{stop}.{n}", os.O_CREAT))  # continuum: allow[D301] as above
            await kill(stop)
    return steps


@workflow
async def innocent(key: str, seconds: float = 0.0) -> str:
    await takes(seconds)
    return await mark(key)


@workflow
async def mother(stop: str) -> str:
    return await kills_in_code(stop)


@workflow
async def listener() -> str:
    return await wait_signal("go")


@workflow
async def guardian() -> str:
    return await listener()


@workflow
async def provider(key: str) -> list[str]:
    """Has an activity in a queue and a child."""
    return await asyncio.gather(far(key), listener())
