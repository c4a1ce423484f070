"""Workflows about what happens inside an attempt: heartbeats, transactions, keys."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async

from continuum import (
    ActivityCancelledError,
    ActivityError,
    NonRetryableError,
    Retry,
    activity,
    activity_info,
    heartbeat,
    sleep,
    wait_signal,
    workflow,
)


def mark(key: str) -> None:
    from tests.app.models import Effect

    Effect.objects.create(key=key)


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)


# Heartbeats


@activity(retry=Retry(max_attempts=3, base=0.01))
def counts_up(to: int) -> list:
    """Fails after each heartbeat but the last; each attempt goes on from what the one before has said."""
    seen = activity_info().heartbeat_details
    here = 0 if seen is None else seen["at"]
    heartbeat({"at": here + 1, "due": timedelta(seconds=here)})
    if here + 1 < to:
        raise ConnectionError("again")
    return [activity_info().attempt, seen["at"], seen["due"].total_seconds()]


@workflow
async def goes_on_from_heartbeats(to: int) -> list:
    return await counts_up(to)


@activity
def beats_until(key: str, path: str) -> Any:
    """Beats until a file exists; tells what the attempt before had said."""
    before = activity_info().heartbeat_details
    mark(key)
    for n in range(1_000_000):
        heartbeat({"n": n, "pid": os.getpid()})
        if os.path.exists(path):
            return before
        time.sleep(0.01)


@workflow
async def beats(key: str, path: str) -> Any:
    return await beats_until(key, path)


@workflow
async def beats_by_queue(key: str, path: str) -> Any:
    return await beats_until.options(queue="books")(key, path)


@workflow
async def stops_listening_by_queue(key: str, path: str) -> str:
    beating = asyncio.create_task(beats_until_stopped.options(queue="books")(key, path))
    await wait_signal("enough")
    beating.cancel()
    return await wait_signal("go")


@activity(retry=Retry(max_attempts=2, base=30))
def beats_and_fails() -> Any:
    if activity_info().attempt == 1:
        heartbeat("first")
        raise ConnectionError("again")
    return activity_info().heartbeat_details


@workflow
async def beats_fails_and_rests() -> Any:
    return await beats_and_fails()


@activity(heartbeat_timeout=0.3)
def falls_silent(path: str) -> None:
    for _ in range(4):
        heartbeat()
        time.sleep(0.1)
    try:
        while True:
            time.sleep(0.4)
            heartbeat()
    except ActivityCancelledError:
        Path(path).touch()
        raise


@activity(heartbeat_timeout=0.3)
async def falls_silent_async() -> None:
    for _ in range(4):
        heartbeat()
        await asyncio.sleep(0.1)
    await asyncio.sleep(30)


@workflow
async def notices_silence(path: str) -> list:
    told = []
    for effect in (falls_silent(path), falls_silent_async()):
        try:
            await effect
        except ActivityError as error:
            told += [error.type, error.message]
    return told


@activity
def beats_until_stopped(key: str, path: str) -> None:
    mark(key)
    try:
        while True:
            heartbeat(key)
            time.sleep(0.01)
    except ActivityCancelledError:
        Path(path).write_text("stopped")
        raise


@activity
async def beats_until_cancelled(key: str, path: str) -> None:
    await sync_to_async(mark)(key)
    try:
        while True:
            heartbeat(key)
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        Path(path).write_text("cancelled")
        raise


@workflow
async def beats_both(key: str, folder: str) -> None:
    await asyncio.gather(
        beats_until_stopped(f"{key}:def", f"{folder}/def"), beats_until_cancelled(f"{key}:async", f"{folder}/async")
    )


@workflow
async def stops_listening(key: str, path: str) -> str:
    beating = asyncio.create_task(beats_until_stopped(key, path))
    await wait_signal("enough")
    beating.cancel()
    return await wait_signal("go")


# Transactions


@activity(transactional=True)
def writes(key: str) -> str:
    mark(key)
    return key


@workflow
async def writes_once(key: str) -> str:
    return await writes(key)


@workflow
async def writes_by_queue(key: str, count: int) -> list:
    return [await writes.options(queue="books")(f"{key}:{n}") for n in range(count)]


@workflow
async def writes_late_by_queue(key: str, path: str) -> int:
    return await writes_late.options(queue="books")(key, path)


@workflow
async def writes_many(key: str, count: int) -> list:
    return await asyncio.gather(*(writes(f"{key}:{n}") for n in range(count)))


@activity(transactional=True, retry=Retry(max_attempts=3, base=0.01))
def writes_and_fails(key: str) -> int:
    mark(f"{key}:{activity_info().attempt}")
    if activity_info().attempt < 3:
        raise ConnectionError("not yet")
    return activity_info().attempt


@workflow
async def writes_at_last(key: str) -> int:
    return await writes_and_fails(key)


@activity(transactional=True)
def writes_and_waits(key: str, path: str) -> str:
    """Says by a file that it is under way, and writes once another file exists."""
    Path(f"{path}.{os.getpid()}").touch()
    mark(key)
    wait_for(path)
    return key


@workflow
async def writes_when_told(key: str, path: str) -> str:
    return await writes_and_waits(key, path)


@activity(transactional=True, timeout=0.3, retry=Retry(max_attempts=2, base=0.01))
def writes_late(key: str, path: str) -> int:
    attempt = activity_info().attempt
    mark(f"{key}:{attempt}")
    if attempt == 1:
        wait_for(path)
    return attempt


@workflow
async def writes_twice_in_vain(key: str, path: str) -> int:
    return await writes_late(key, path)


@activity(transactional=True)
def writes_or_dies(key: str, path: str) -> str:
    """Kills its process, the first time."""
    mark(key)
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return key


@workflow
async def writes_after_death(key: str, path: str) -> str:
    return await writes_or_dies(key, path)


@workflow
async def writes_a_few(key: str, count: int) -> list:
    return [await writes(f"{key}:{n}") for n in range(count)]


# Idempotency keys


def by_first(key: str, *rest: Any) -> str:
    return key


@activity(idempotency_key=by_first)
def charges(key: str, path: str) -> str:
    mark(key)
    wait_for(path)
    return f"receipt {activity_info().run_id} {activity_info().idempotency_key}"


@workflow
async def pays(key: str, path: str) -> str:
    return await charges(key, path)


@workflow
async def pays_by_queue(key: str, path: str) -> str:
    return await charges.options(queue="cash")(key, path)


@workflow
async def pays_twice(key: str, path: str) -> list:
    return await asyncio.gather(charges(key, path), charges(key, path))


@workflow
async def pays_while_wanted(key: str, path: str) -> str:
    paying = asyncio.create_task(charges(key, path))
    await wait_signal("enough")
    paying.cancel()
    return await wait_signal("go")


@activity(idempotency_key=by_first)
def charges_if(key: str, path: str, good: bool) -> str:
    mark(f"{key}:{good}")
    wait_for(path)
    if not good:
        raise NonRetryableError("no cover")
    return "paid"


@workflow
async def pays_if(key: str, path: str, good: bool) -> str:
    try:
        return await charges_if(key, path, good)
    except ActivityError as error:
        return error.message


@activity(idempotency_key=by_first, transactional=True)
def charges_once(key: str, path: str = "/") -> str:
    mark(key)
    wait_for(path)
    return f"receipt {activity_info().run_id}"


@workflow
async def pays_once(key: str, path: str = "/") -> str:
    return await charges_once(key, path)


@activity(idempotency_key=by_first)
async def charges_nothing(key: str) -> None:
    await sync_to_async(mark)(key)


@workflow
async def pays_nothing(key: str) -> None:
    await charges_nothing(key)
    await sleep(0.01)


@workflow
async def pays_with_own_key(key: str) -> str:
    return await charges_once.options(idempotency_key=f"own:{key}")(key)
