"""Workflows for workers that are told to stop in the middle of them, or that have others beside them."""

from __future__ import annotations

import asyncio
import os
import time

from continuum import activity, sleep, start_child, wait_signal, workflow

__all__ = ["branches", "cleans_up", "effect_once", "has_a_child", "waits_and_walks", "walks"]


def mark(key: str) -> str:
    from tests.app.models import Effect

    Effect.objects.create(key=key)
    return key


@activity
def takes(key: str, seconds: float) -> str:
    """Takes a moment, and leaves its row behind at the end of it."""
    time.sleep(seconds)
    return mark(key)


@activity
def steps_on(key: str) -> str:
    return mark(key)


@activity(idempotency_key=lambda key: key)
def keyed(key: str) -> str:
    return mark(key)


@activity
def held(key: str, path: str) -> str:
    """Runs until a file exists."""
    mark(f"{key} began")
    while not os.path.exists(path):
        time.sleep(0.01)
    return mark(f"{key} ended")


@workflow
async def walks(key: str, steps: int) -> int:
    """One step after the other, with a nap now and then."""
    for n in range(steps):
        await takes(f"{key}:{n}", 0.02)
        if n % 4 == 3:
            await sleep(0.05)
    return steps


@workflow
async def waits_and_walks(key: str, steps: int) -> int:
    await wait_signal("go")
    for n in range(steps):
        await steps_on(f"{key}:{n}")
    return steps


@workflow
async def branches(key: str, path: str, steps: int) -> list:
    """A branch that takes its time, beside one that goes on."""
    return await asyncio.gather(held(key, path), _goes_on(key, steps))


async def _goes_on(key: str, steps: int) -> str:
    await wait_signal("go")
    for n in range(steps):
        await steps_on(f"{key}:{n}")
        await sleep(0.01)
    return await keyed(f"{key}:keyed")


@workflow
async def effect_once(key: str) -> str:
    return await steps_on(key)


@workflow
async def cleans_up(key: str) -> None:
    try:
        await wait_signal("never")
    finally:
        await steps_on(f"{key}:cleaned")


@workflow
async def has_a_child(key: str, path: str) -> None:
    child = await start_child(cleans_up, f"{key}:child")
    await held(key, path)
    await child
