"""Workflows that have children, are children, or go on as other runs."""

from __future__ import annotations

import asyncio
from typing import Any

from continuum import (
    ChildError,
    activity,
    continue_as_new,
    run_info,
    sleep,
    start_child,
    wait_signal,
    workflow,
)

__all__ = [
    "adopts",
    "asks_children",
    "begets",
    "doubles",
    "fans_out",
    "fans_out_and_dies",
    "generations",
    "goes_on",
    "hands_over",
    "has_child_that_goes_on",
    "leaves_children",
    "loses_patience_with_child",
    "loses_track",
    "mark",
    "marks",
    "raises_or_waits",
    "subscribes",
    "tells_about_itself",
    "waits_for_word",
]


@activity
def mark(key: str) -> str:
    """Leaves a row behind each time its body runs."""
    from tests.app.models import Effect

    Effect.objects.create(key=key)
    return key


@workflow
async def doubles(n: int) -> int:
    return 2 * n


@workflow
async def fans_out(n: int) -> int:
    return sum(await asyncio.gather(*(doubles(i) for i in range(n))))


@workflow
async def fans_out_and_dies(key: str, n: int) -> list[str]:
    """Starts children, joins half of them, and meets an activity that kills its worker."""
    from tests.app.workflows import kill_worker

    children = [await start_child(marks, f"{key}:{i}") for i in range(n)]
    first = [await child for child in children[: n // 2]]
    await kill_worker(key)
    more = await asyncio.gather(*(marks(f"{key}:more:{i}") for i in range(n)))
    return first + [await child for child in children[n // 2 :]] + more


@workflow
async def marks(key: str) -> str:
    await sleep(0.05)
    return await mark(key)


@workflow
async def tells_about_itself() -> dict:
    info = run_info()
    return {"id": str(info.run_id), "parent": str(info.parent_run_id), "namespace": info.namespace}


@workflow
async def asks_children() -> list[dict]:
    one = await tells_about_itself()
    other = await start_child(
        tells_about_itself, id="special", namespace="elsewhere", attributes={"kind": "special", "n": [1]}
    )
    return [one, await other, {"id": str(other.id)}]


@workflow
async def raises_or_waits(how: str) -> str:
    if how == "raise":
        raise ValueError("no such luck")
    while (word := await wait_signal("go")) == "not yet":
        continue
    return word


@workflow
async def begets(how: str) -> dict:
    """Tells what it learned of a child that came to no good."""
    child = await start_child(raises_or_waits, how)
    try:
        return {"value": await child}
    except ChildError as error:
        return {
            "state": error.state,
            "type": error.type,
            "message": error.message,
            "same": str(error.run_id) == str(child.id),
        }


@workflow
async def generations(depth: int, key: str) -> Any:
    """Each generation has two children, of which it awaits one, and cleans up after itself."""
    try:
        if depth == 0:
            return await wait_signal("never")
        await start_child(generations, depth - 1, f"{key}.0")
        return await generations(depth - 1, f"{key}.1")
    finally:
        await mark(key)


@workflow
async def loses_track(depth: int) -> int:
    return await loses_track(depth + 1)


@workflow
async def leaves_children(how: str, n: int) -> list[str]:
    children = [await start_child(waits_for_word) for _ in range(n)]
    if how == "raise":
        raise ValueError("gone")
    while how == "wait":
        await wait_signal("again")
    return [str(child.id) for child in children]


@workflow
async def waits_for_word() -> Any:
    return await wait_signal("go")


@workflow
async def loses_patience_with_child() -> str:
    try:
        async with asyncio.timeout(0.2):
            await waits_for_word()
    except TimeoutError:
        return "not waited for"
    return "in time"


@workflow
async def goes_on(n: int, total: int = 0) -> int:
    """A run a step."""
    await sleep(0.01)
    if n == 0:
        return total
    continue_as_new(n - 1, total + n)


@workflow
async def has_child_that_goes_on(n: int) -> int:
    return await goes_on(n)


@workflow
async def subscribes(limit: int, seen: list | None = None) -> list:
    """Takes in three items a run, sees to the first two, and leaves the rest to its successor."""
    seen = seen or []
    while True:
        for _ in range(2):
            seen.append(await wait_signal("item"))
            if len(seen) == limit:
                return seen
        await sleep(0.02)
        continue_as_new(limit, seen)


@workflow
async def adopts(generation: int = 0) -> str:
    """Starts a child, and goes on as a run that knows nothing of it."""
    if generation == 0:
        await start_child(waits_for_word)
        await wait_signal("on")
        continue_as_new(1)
    return await wait_signal("never")


@workflow
async def hands_over(generation: int = 0) -> list:
    """Goes on as another run at a word, and then takes in two items."""
    if generation == 0:
        await wait_signal("on")
        continue_as_new(1)
    return [await wait_signal("item"), await wait_signal("item")]
