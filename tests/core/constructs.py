"""Workflows that use asyncio, one construct each. Driven by the tests, and recorded as golden histories."""

# ruff: noqa: RUF006  (a run holds its tasks itself)

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import continuum.core.gathering as continuum
from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.facts import now, random, uuid4
from continuum.core.lineage import continue_as_new, start_child
from continuum.core.retry import Retry
from continuum.core.sagas import compensate, compensate_all, saga
from continuum.exceptions import ActivityError, ChildError

CONSTRUCTS: dict[str, Any] = {}


@activity(name="work")
def work(n: int) -> int:
    return n * 10


@activity(name="fail", retry=Retry(max_attempts=2))
def fail(text: str) -> None:
    raise ValueError(text)


def construct(fn: Any) -> Any:
    """Declare a workflow under its plain name; tests send each the signals ``a`` 1, 2, 3 and ``b`` 4."""
    CONSTRUCTS[fn.__name__] = workflow(fn, name=f"construct.{fn.__name__}")
    return CONSTRUCTS[fn.__name__]


@construct
async def sequence() -> Any:
    return [await work(n) for n in range(3)]


@construct
async def gather() -> Any:
    return await asyncio.gather(work(1), work(2), sleep(3), asyncio.sleep(2, "slept"))


@construct
async def gather_with_exceptions() -> Any:
    values = await asyncio.gather(work(1), fail("f"), asyncio.sleep(1), return_exceptions=True)
    return [type(v).__name__ if isinstance(v, Exception) else v for v in values]


@construct
async def gather_that_fails() -> Any:
    others = [asyncio.ensure_future(work(1)), asyncio.ensure_future(sleep(50))]
    try:
        await asyncio.gather(*others, fail("f"))
    except ActivityError as exc:
        return [exc.message, *[task.done() for task in others], await others[0]]


@construct
async def task_group() -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(n)) for n in range(3)]
        tasks.append(group.create_task(wait_signal("a")))
    return [task.result() for task in tasks]


@construct
async def task_group_that_fails() -> Any:
    cleaned = []

    async def careful(n: int) -> None:
        try:
            await sleep(100)
        finally:
            cleaned.append([n, await work(n)])

    try:
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(careful(n))
            group.create_task(fail("f"))
    except* ActivityError as failed:
        cleaned.append([e.message for e in failed.exceptions])
    return cleaned


@construct
async def nested_groups() -> Any:
    async def inner(n: int) -> list:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(n * 10 + i)) for i in range(2)]
        return [task.result() for task in tasks]

    async with asyncio.TaskGroup() as outer:
        tasks = [outer.create_task(inner(n)) for n in range(3)]
    return [task.result() for task in tasks]


@construct
async def timeout() -> Any:
    seen = []
    async with asyncio.timeout(30) as scope:
        seen.append(await work(1))
        scope.reschedule(asyncio.get_running_loop().time() + 60)
    try:
        async with asyncio.timeout(3):
            await sleep(10)
    except TimeoutError:
        seen.append("over")
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + 1):
            try:
                async with asyncio.timeout(50):
                    await wait_signal("never")
            except TimeoutError:
                seen.append("the inner one")
    except TimeoutError:
        seen.append("the outer one")
    async with asyncio.timeout(None):
        seen.append(await work(2))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await work(3)
    return [*seen, str(now())]


@construct
async def wait_for() -> Any:
    seen = [await asyncio.wait_for(work(1), 30)]
    try:
        await asyncio.wait_for(sleep(10), 3)
    except TimeoutError:
        seen.append("over")
    for timeout in (0, -1):
        try:
            await asyncio.wait_for(work(2), timeout)
        except TimeoutError:
            seen.append(f"over after {timeout}")
    seen.append(await asyncio.wait_for(work(3), None))
    return [*seen, await work(4)]


@construct
async def wait_for_around_wait_for() -> Any:
    async def slow(n: int) -> int:
        await asyncio.wait_for(sleep(n), 100)
        return await asyncio.wait_for(work(n), 50)

    seen = [await asyncio.wait_for(asyncio.wait_for(slow(2), 20), 30)]
    try:
        await asyncio.wait_for(asyncio.wait_for(slow(9), 60), 5)
    except TimeoutError:
        seen.append("outer")
    try:
        await asyncio.wait_for(asyncio.wait_for(slow(9), 5), 60)
    except TimeoutError:
        seen.append("inner")
    return [*seen, await work(7)]


@construct
async def wait_for_around_gather() -> Any:
    seen: list = [await asyncio.wait_for(asyncio.gather(work(1), work(2)), 30)]
    try:
        await asyncio.wait_for(asyncio.gather(work(3), sleep(40)), 30)
    except TimeoutError:
        seen.append("over")
    return [*seen, await work(7)]


@construct
async def wait_for_around_a_task() -> Any:
    task = asyncio.create_task(work(1))
    seen: list = [await asyncio.wait_for(task, 30)]
    slow = asyncio.create_task(sleep(40))
    try:
        await asyncio.wait_for(slow, 30)
    except TimeoutError:
        seen.append(slow.cancelled())
    shielded = asyncio.create_task(sleep(40))
    try:
        await asyncio.wait_for(asyncio.shield(shielded), 30)
    except TimeoutError:
        await shielded
    return [*seen, await work(7)]


@construct
async def wait_for_around_a_group() -> Any:
    async def group(seconds: int) -> list:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(n)) for n in range(2)]
            group.create_task(sleep(seconds))
            extra = await work(5)
        return [*(task.result() for task in tasks), extra]

    seen: list = [await asyncio.wait_for(group(3), 30)]
    try:
        await asyncio.wait_for(group(60), 30)
    except TimeoutError:
        seen.append("over")
    return [*seen, await work(7)]


@construct
async def wait_for_with_slow_cleanup() -> Any:
    async def slow(result: Any) -> Any:
        try:
            await sleep(100)
        except asyncio.CancelledError:
            await sleep(20)
            if result is None:
                raise
            return result

    seen = []
    for result in (None, "kept"):
        try:
            seen.append(await asyncio.wait_for(slow(result), 5))
        except TimeoutError:
            seen.append("over")
    return [*seen, await work(7)]


@construct
async def wait_for_in_concurrent_tasks() -> Any:
    # Who waits first gets the first signal, with a timeout or without; the same goes for a queue.
    async def impatient(name: str) -> list:
        return [name, await asyncio.wait_for(wait_signal("a"), 500)]

    async def patient(name: str) -> list:
        return [name, await wait_signal("a")]

    signals = await asyncio.gather(impatient("one"), patient("two"), impatient("three"))
    queue: asyncio.Queue = asyncio.Queue()

    async def get(n: int) -> list:
        return [n, await (asyncio.wait_for(queue.get(), 50) if n % 2 else queue.get())]

    getters = [asyncio.create_task(get(n)) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    for n in range(3):
        queue.put_nowait(await work(n))
    return [signals, await asyncio.gather(*getters)]


@construct
async def wait_for_cancelled_from_outside() -> Any:
    async def waiting(n: int) -> None:
        try:
            await asyncio.wait_for(sleep(100), 50)
        finally:
            order.append([n, await work(n)])

    order: list = []
    tasks = [asyncio.create_task(waiting(n)) for n in range(3)]
    await sleep(1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return order


@construct
async def queue() -> Any:
    queue: asyncio.Queue = asyncio.Queue(maxsize=2)
    taken = []

    async def consume(name: str) -> None:
        while True:
            n = await queue.get()
            taken.append([name, n, await work(n)])
            queue.task_done()

    consumers = [asyncio.create_task(consume(name)) for name in ("one", "two")]
    for n in range(5):
        await queue.put(n)
    await queue.join()
    for consumer in consumers:
        consumer.cancel()
    return taken


@construct
async def priority_queue() -> Any:
    queue: asyncio.PriorityQueue = asyncio.PriorityQueue()
    for n in range(3):
        queue.put_nowait((-(await work(n)), n))
    return [(await queue.get())[1] for _ in range(3)]


@construct
async def event() -> Any:
    event = asyncio.Event()
    woken = []

    async def waiter(n: int) -> None:
        await event.wait()
        woken.append([n, await work(n)])

    tasks = [asyncio.create_task(waiter(n)) for n in range(3)]
    await sleep(5)
    event.set()
    await asyncio.gather(*tasks)
    return woken


@construct
async def lock() -> Any:
    lock = asyncio.Lock()
    order: list = []

    async def locked(n: int) -> None:
        async with lock:
            order.append(n)
            order.append(await work(n))

    await asyncio.gather(*(locked(n) for n in range(3)))
    return order


@construct
async def semaphore() -> Any:
    semaphore = asyncio.Semaphore(2)
    running = most = 0

    async def limited(n: int) -> int:
        nonlocal running, most
        async with semaphore:
            running += 1
            most = max(most, running)
            value = await work(n)
            running -= 1
            return value

    return [await asyncio.gather(*(limited(n) for n in range(5))), most]


@construct
async def bounded_semaphore_with_timeouts() -> Any:
    semaphore = asyncio.BoundedSemaphore(1)
    order = []

    async def patient(n: int) -> None:
        try:
            async with asyncio.timeout(n):
                async with semaphore:
                    await sleep(3)
                    order.append(n)
        except TimeoutError:
            order.append(-n)

    await asyncio.gather(*(patient(n) for n in (10, 2, 10, 5)))
    return order


@construct
async def condition() -> Any:
    condition = asyncio.Condition()
    stock = 0
    served = []

    async def customer(n: int) -> None:
        nonlocal stock
        async with condition:
            await condition.wait_for(lambda: stock > 0)
            stock -= 1
            served.append([n, await work(n)])

    customers = [asyncio.create_task(customer(n)) for n in range(3)]
    for _ in range(3):
        await sleep(1)
        async with condition:
            stock += 1
            condition.notify()
    await asyncio.gather(*customers)
    return served


@construct
async def barrier() -> Any:
    barrier = asyncio.Barrier(3)

    async def meet(n: int) -> list:
        await work(n)
        return [n, await barrier.wait()]

    return await asyncio.gather(*(meet(n) for n in range(3)))


@construct
async def shield() -> Any:
    async def precious() -> int:
        await sleep(5)
        return await work(1)

    inner = asyncio.create_task(precious())

    async def outer() -> int:
        return await asyncio.shield(inner)

    task = asyncio.create_task(outer())
    await sleep(1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return [task.cancelled(), await inner]


@construct
async def ordered_wait() -> Any:
    tasks = [asyncio.create_task(work(n), name=str(n)) for n in range(4)]
    first, rest = await continuum.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    done, pending = await continuum.wait(rest)
    assert not pending
    late, never = await continuum.wait([asyncio.create_task(sleep(2)), asyncio.create_task(sleep(50))], timeout=9)
    never[0].cancel()
    return [[task.get_name() for task in group] for group in (first, rest, done)] + [len(late), len(never)]


@construct
async def plain_wait() -> Any:
    tasks = [asyncio.create_task(work(n)) for n in range(3)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finished = [task.done() for task in tasks]
    await asyncio.wait(tasks, timeout=60)
    failing = [asyncio.create_task(fail("f")), asyncio.create_task(sleep(100))]
    await asyncio.wait(failing, return_when=asyncio.FIRST_EXCEPTION)
    seen = [task.done() for task in failing]
    failing[1].cancel()
    return [finished, [task.result() for task in tasks], seen, type(failing[0].exception()).__name__]


@construct
async def ordered_as_completed() -> Any:
    values = [await item for item in continuum.as_completed([work(n) for n in range(4)])]
    async for task in continuum.as_completed([sleep(3), sleep(1), work(9)], timeout=60):
        values.append(task.result())
    try:
        for item in continuum.as_completed([sleep(50), sleep(1)], timeout=5):
            values.append(await item)
    except TimeoutError:
        values.append("over")
    return values


@construct
async def plain_as_completed() -> Any:
    return [await item for item in asyncio.as_completed([work(n) for n in range(4)])]


@construct
async def race_of_timers_signals_and_work() -> Any:
    async def named(name: str, aw: Any) -> list:
        return [name, await aw]

    winners = []
    for n in range(4):
        tasks = [
            asyncio.create_task(named("signal", wait_signal("a"))),
            asyncio.create_task(named("work", work(n))),
            asyncio.create_task(named("timer", sleep(2))),
        ]
        done, pending = await continuum.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        winners.append(done[0].result())
    return winners


@construct
async def fire_and_forget() -> Any:
    seen = []

    async def background(n: int) -> None:
        seen.append(await work(n))
        asyncio.create_task(background_end(n))

    async def background_end(n: int) -> None:
        await sleep(n)
        seen.append(await work(n + 10))

    for n in range(2):
        asyncio.create_task(background(n))
    await sleep(30)
    return seen


@construct
async def async_generators() -> Any:
    closed = []

    async def numbers(most: int) -> Any:
        try:
            for n in range(most):
                yield await work(n)
        finally:
            closed.append(await work(most))

    values = [n async for n in numbers(3) if n]
    async with contextlib.aclosing(numbers(9)) as some:
        async for n in some:
            if n:
                break
    return [values, closed]


@construct
async def async_context_managers() -> Any:
    log = []

    @contextlib.asynccontextmanager
    async def resource(n: int) -> Any:
        log.append(["open", await work(n)])
        try:
            yield n
        finally:
            log.append(["close", await work(n)])

    with contextlib.suppress(ValueError):
        async with contextlib.AsyncExitStack() as stack:
            for n in range(2):
                await stack.enter_async_context(resource(n))
            raise ValueError
    return log


@construct
async def exception_groups() -> Any:
    async def failing(n: int) -> None:
        try:
            await sleep(n)
            raise LookupError(n)
        except asyncio.CancelledError:
            await work(n)
            raise KeyError(n) from None

    caught = []
    try:
        async with asyncio.TaskGroup() as group:
            for n in (3, 1, 2):
                group.create_task(failing(n))
    except* KeyError as errors:
        caught.append(sorted(e.args[0] for e in errors.exceptions))
    except* LookupError as errors:
        caught.append([e.args[0] for e in errors.exceptions])
    return caught


@construct
async def callbacks() -> Any:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    log: list = []
    loop.call_later(5, log.append, "late")
    loop.call_later(1, log.append, "early").cancel()
    loop.call_at(loop.time() + 3, log.append, "middle")
    loop.call_soon(log.append, "soon")
    loop.call_later(7, done.set_result, "done")
    return [await done, log]


@construct
async def draws_in_tasks() -> Any:
    async def draw(n: int) -> list:
        await work(n)
        return [str(uuid4()), random(), str(now())]

    return await asyncio.gather(*(draw(n) for n in range(3)), asyncio.wait_for(draw(3), 60))


@construct
async def cancelled_tasks() -> Any:
    async def stubborn() -> str:
        try:
            await sleep(50)
        except asyncio.CancelledError:
            await work(1)
            return "stayed"
        return "slept"

    task = asyncio.create_task(stubborn())
    never_begun = asyncio.create_task(work(2))
    never_begun.cancel()
    await sleep(1)
    task.cancel("please")
    return [await task, task.cancelling(), never_begun.cancelled() or (await continuum.wait([never_begun]))[0] == []]


@construct
async def signals_with_timeouts() -> Any:
    seen = []
    for _ in range(5):
        try:
            seen.append(await wait_signal("a", timeout=20))
        except TimeoutError as exc:
            seen.append(str(exc))
    seen.append(await wait_signal("b"))
    return seen


@construct
async def retries_and_failures() -> Any:
    async def attempt(n: float) -> str:
        try:
            await asyncio.wait_for(fail("f"), n)
        except ActivityError as exc:
            return f"{exc.type} {exc.attempts}"
        except TimeoutError:
            return "over"
        return ""

    return await asyncio.gather(attempt(60), attempt(0.5))


# -- children, sagas, successors --------------------------------------------------------------------------------


@workflow(name="construct.offspring")
async def offspring(n: int) -> int:
    return await work(n) + 1


@workflow(name="construct.unlucky")
async def unlucky(text: str) -> None:
    await fail(text)


@construct
async def children() -> Any:
    seen: list = [await offspring(1), await asyncio.gather(offspring(2), work(3), offspring(4))]
    try:
        await unlucky("u")
    except ChildError as exc:
        seen.append([exc.state, exc.type])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(offspring(n)) for n in range(3)]
    return [*seen, [task.result() for task in tasks], await asyncio.wait_for(offspring(9), 600)]


@construct
async def children_in_handles() -> Any:
    handles = [await start_child(offspring, n, id=f"child {n}", attributes={"n": n}) for n in range(3)]
    await start_child(unlucky, "nobody asks")
    seen = []
    try:
        seen.append(await asyncio.wait_for(handles[0], 2))
    except TimeoutError:
        seen.append(-1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            seen.append(await asyncio.shield(handles[1]))
    handles[2].cancel("not wanted")
    with contextlib.suppress(ChildError):
        seen.append(await handles[2])
    done, _ = await continuum.wait(handles)
    return [seen, len(done), await handles[0], [str(handle.id) for handle in handles]]


@construct
async def children_given_up() -> Any:
    seen = []
    for seconds in (1, 500):
        try:
            seen.append(await asyncio.wait_for(offspring(1), seconds))
        except TimeoutError:
            seen.append("over")
    task = asyncio.create_task(offspring(2))
    await sleep(1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        seen.append(await task)
    return seen


@construct
async def saga_that_fails() -> Any:
    async with saga():
        await asyncio.gather(*(work(n).compensated_by(work.bind(-n)) for n in range(3)))
        try:
            async with saga(parallel=True):
                await offspring(1).compensated_by(offspring.bind(-1))
                await work(7).compensated_by(lambda result: fail.bind(str(result)))
                await fail("inner")
        except ActivityError:
            await work(8).compensated_by(offspring.bind(-8))
        async with asyncio.TaskGroup() as group:
            group.create_task(work(9).compensated_by(work.bind(-9)))
            group.create_task(fail("outer"))
            group.create_task(sleep(100))


@construct
async def compensations_by_hand() -> Any:
    effects = [work(n).compensated_by(work.bind(-n)) for n in range(4)]
    for effect in effects:
        await effect
    seen: list = [await compensate(effects[1]), await compensate(effects[1])]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1), saga():
            await work(5).compensated_by(work.bind(-5))
            await sleep(50)
    return [*seen, await compensate_all(parallel=True), await compensate_all()]


@construct
async def going_on() -> Any:
    async def leave() -> None:
        await wait_signal("a")
        continue_as_new()

    try:
        async with saga(), asyncio.TaskGroup() as group:
            await work(1).compensated_by(work.bind(-1))
            await start_child(offspring, 1)
            group.create_task(sleep(300))
            group.create_task(leave())
    finally:
        await work(2)
