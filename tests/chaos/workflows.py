"""What runs while everything breaks. Each key is used by one run alone, but for those of shared activities."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from continuum import (
    ActivityError,
    ChildError,
    NonRetryableError,
    Retry,
    activity,
    activity_info,
    continue_as_new,
    heartbeat,
    saga,
    sleep,
    start_child,
    wait_signal,
    workflow,
)

__all__ = ["GATES", "KINDS", "acts_behind_gate", "awaits_word"]

# Names the directory of the gates of an ambush, see ambush.py.
GATES = "CHAOS_GATES"

# A connection that breaks costs an attempt.
STUBBORN = Retry(max_attempts=1000, base=0.03, max_delay=0.5)


def mark(key: str) -> str:
    from tests.app.models import Effect

    Effect.objects.create(key=key)
    return key


@activity(retry=STUBBORN)
def does(key: str) -> str:
    """At least once, recorded once."""
    return mark(key)


@activity(retry=STUBBORN)
async def adds(a: int, b: int) -> int:
    await asyncio.sleep(0.002)
    return a + b


@activity(retry=STUBBORN)
def flaky(key: str) -> str:
    if activity_info().attempt < 3:
        raise ConnectionError("not yet")
    return mark(key)


@activity(retry=STUBBORN, transactional=True)
def once(key: str, seconds: float = 0.0) -> str:
    """Exactly once: the row is there once."""
    mark(key)
    time.sleep(seconds)
    return key


@activity(retry=STUBBORN, transactional=True, timeout=0.15)
def once_in_time(key: str) -> str:
    """Exactly once, by attempts of which many time out right when they are about to commit."""
    mark(key)
    time.sleep(0.12 + (uuid.uuid4().int % 60) / 1000 if activity_info().attempt < 4 else 0)
    return key


@activity(retry=STUBBORN, heartbeat_timeout=1.0)
def beats(key: str) -> str:
    for step in range(activity_info().heartbeat_details or 0, 4):
        heartbeat(step)
        time.sleep(0.05)
    return mark(key)


@activity(retry=STUBBORN, idempotency_key=lambda key: key)
def draws(key: str) -> str:
    """One result for all runs that share a key."""
    time.sleep(0.02)
    return f"{key}:{uuid.uuid4().hex}"


@activity(retry=STUBBORN, idempotency_key=lambda key: key, transactional=True)
def draws_once(key: str) -> str:
    """One result, and one row, for all runs that share a key."""
    return mark(f"once:{key}:{uuid.uuid4().hex}")


@activity(retry=STUBBORN)
def passes(key: str) -> str:
    """Fails for good until somebody has opened the gate."""
    from tests.app.models import Effect

    if not Effect.objects.filter(key=f"gate:{key}").exists():
        raise NonRetryableError("the gate is shut")
    return mark(key)


@activity(retry=STUBBORN)
def takes_place(queue: str, key: str, seconds: float) -> str:
    """Leaves behind from when to when it had a place in its queue, and in which process."""
    began = time.time()
    time.sleep(seconds)
    return mark(f"place:{queue}:{os.getpid()}:{key}:{began!r}:{time.time()!r}")


@activity(retry=STUBBORN, queue="paced")
def keeps_pace() -> None:
    """When it began stands in the history."""


@activity(retry=STUBBORN, transactional=True)
def once_behind_gate(key: str) -> str:
    """Exactly once: says that it has begun, and commits when the gates of all and of its own process are open."""
    gates = Path(os.environ[GATES])
    effect = mark(f"once:{key}:gate")
    (gates / f"{key}.{os.getpid()}").touch()
    while (gates / "shut.").exists() or (gates / f"shut.{os.getpid()}").exists():
        time.sleep(0.01)
    return effect


class RefusedError(NonRetryableError):
    pass


@activity
def refuses() -> None:
    raise RefusedError("no")


@workflow
async def steps(key: str) -> list[Any]:
    """One step after the other, and some at once."""
    first = await does(f"{key}:first")
    paid = await once(f"once:{key}:paid")
    fan = await asyncio.gather(
        does.options(queue="many")(f"{key}:queued"),
        does.options(queue="few")(f"{key}:few"),
        does.options(queue="slowly", priority=3)(f"{key}:slowly"),
        once.options(queue="many")(f"once:{key}:queued", 0.02),
        flaky.options(queue="many")(f"{key}:flaky queued"),
        flaky(f"{key}:flaky"),
        *(adds(n, n) for n in range(5)),
    )
    await sleep(0.05)
    return [first, paid, *fan, await does(f"{key}:last")]


@workflow
async def hurries(key: str) -> list[str]:
    """Transactional attempts that time out, here and in a queue."""
    return await asyncio.gather(
        once_in_time(f"once:{key}:tight"),
        once_in_time.options(queue="many")(f"once:{key}:tight queued"),
        once(f"once:{key}:calm", 0.1),
    )


@workflow
async def beats_on(key: str) -> list[str]:
    return await asyncio.gather(beats(f"{key}:here"), beats.options(queue="many")(f"{key}:there"))


@workflow
async def times(key: str) -> list[Any]:
    """Timers in parallel, and a race that the shorter one wins."""
    await asyncio.gather(*(sleep(0.02 * n) for n in range(1, 6)))
    race = [asyncio.create_task(sleep(seconds)) for seconds in (0.1, 300)]
    await asyncio.wait(race, return_when=asyncio.FIRST_COMPLETED)
    won = [task.done() for task in race]
    race[1].cancel()
    return [won, await does(f"{key}:timed")]


@workflow
async def collects(key: str, got: list[int] | None = None) -> list[int]:
    """Returns what it was told, over several runs."""
    got = got or []
    for _ in range(5):
        word = await wait_signal("word")
        if word is None:
            return got
        got.append(word)
        if word % 3 == 0:
            await does(f"{key}:word {word}")
    continue_as_new(key, got)
    raise AssertionError("not reached")


@workflow
async def listens_twice(key: str) -> list[list[int]]:
    """Two names at once, in one run."""

    async def listen(name: str) -> list[int]:
        got = []
        while (word := await wait_signal(name)) is not None:
            got.append(word)
        await does(f"{key}:{name}")
        return got

    return await asyncio.gather(listen("left"), listen("right"))


@workflow
async def child(key: str, fate: int) -> str:
    await sleep(0.02 * fate)
    await once(f"once:{key}:child")
    if fate == 1:
        await refuses()
    if fate == 2:
        return await child(f"{key}:grand", 0)
    return await does(f"{key}:child {fate}")


@workflow
async def fans_out(key: str) -> list[Any]:
    """Children awaited at once and later; what became of them is the result."""
    early = [await start_child(child, f"{key}:{n}", n % 4) for n in range(4)]

    async def outcome(effect: Any) -> Any:
        try:
            return await effect
        except ChildError as error:
            return error.state

    joined = await asyncio.gather(*(outcome(child(f"{key}:join {n}", n % 4)) for n in range(5)))
    await does(f"{key}:between")
    return [joined, [await outcome(one) for one in early]]


@workflow
async def books(key: str, fails: bool) -> str:
    """Undone if it fails."""
    async with saga():
        for n in range(3):
            effect = once if n % 2 else once.options(queue="many")
            await effect(f"once:do:{key}:{n}").compensated_by(once.bind(f"once:undo:{key}:{n}"))
        await sleep(0.03)
        if fails:
            await refuses()
    return await does(f"{key}:booked")


@workflow
async def goes_on(key: str, round: int = 0, log: list[str] | None = None) -> list[str]:
    """Several runs, one after the other."""
    log = [*(log or []), await once(f"once:{key}:{round}"), await does(f"{key}:round {round}")]
    if round < 4:
        continue_as_new(key, round + 1, log)
    return log


@workflow
async def waits_for_nothing(key: str, depth: int) -> Any:
    """Ends only because it is cancelled, with all that it has begun."""
    try:
        async with saga():
            await once(f"once:do:{key}:{depth}").compensated_by(once.bind(f"once:undo:{key}:{depth}"))
            if depth:
                await start_child(waits_for_nothing, f"{key}:aside", depth - 1)
                return await waits_for_nothing(f"{key}:below", depth - 1)
            return await wait_signal("never")
    finally:
        await does(f"{key}:swept {depth}")


@workflow
async def shares(key: str, shared: str) -> list[str]:
    return await asyncio.gather(
        draws(f"{shared}:a"),
        draws.options(queue="many")(f"{shared}:b"),
        draws_once(f"{shared}:c"),
        draws_once.options(queue="many")(f"{shared}:d"),
    )


@workflow
async def meets_gate(key: str) -> list[str]:
    """Fails until the gate is open; is retried then."""
    begun = await once(f"once:{key}:begun")
    return [begun, await passes(f"{key}:passed"), await once.options(queue="many")(f"once:{key}:after")]


@workflow
async def catches(key: str) -> str:
    with suppress(ActivityError):
        await refuses.options(queue="few")()
    return await once.options(queue="few")(f"once:{key}:caught", 0.01)


@workflow
async def queues_up(key: str) -> int:
    """More at once than the limits of the queues allow."""
    places = [
        takes_place.options(queue=queue)(queue, f"{key}-{n}", 0.1) for queue in ("few", "slowly") for n in range(6)
    ]
    return len(await asyncio.gather(*places, *(keeps_pace() for _ in range(40))))


@workflow
async def awaits_word(key: str) -> Any:
    return await wait_signal("word")


@workflow
async def acts_behind_gate(key: str) -> str:
    return await once_behind_gate(key)


KINDS = {
    flow.fn.__name__: flow
    for flow in (
        steps,
        hurries,
        beats_on,
        times,
        collects,
        listens_twice,
        fans_out,
        books,
        goes_on,
        waits_for_nothing,
        shares,
        meets_gate,
        catches,
        queues_up,
    )
}
