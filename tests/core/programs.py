"""Workflow programs as data: nested lists that one generic workflow interprets, and a generator of them.

A program is a list ``[kind, *operands]``. Being plain JSON it is the workflow's input, so that a changed program is
changed code as far as replay can tell. Programs are made by a function ``pick(n)`` that chooses a number below ``n``:
Hypothesis for the property tests, a seeded ``random.Random`` for the golden histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from continuum.core import effects, facts, gathering, lineage, sagas
from continuum.core.commands import Command
from continuum.core.definitions import activity, workflow
from continuum.core.retry import Retry
from continuum.exceptions import ActivityError, ChildError
from tests.core.driver import note

Pick = Callable[[int], int]


@activity(name="alpha")
def alpha(arg: Any) -> Any: ...


@activity(name="beta")
def beta(arg: Any, *, flag: bool = False) -> Any: ...


@activity(name="gamma", retry=Retry(max_attempts=3, base=2.0))
def gamma(arg: Any) -> Any: ...


@workflow(name="offspring")
async def offspring(arg: Any) -> Any: ...


def fate_of_child(arg: Any) -> Any:
    """Stands in for every child: fails or succeeds by its argument."""
    if arg == 2:
        raise ValueError("by lot")
    return arg


ACTIVITIES = {"alpha": alpha, "beta": beta, "gamma": gamma}


def outcome_of_attempt(command: Command) -> Any:
    """Stands in for every activity: fails or succeeds by what the command is, not by when it runs."""
    lot = blake2b(f"{command.id}{command.args}{command.attempt}".encode(), digest_size=1).digest()[0]
    if lot % 5 == 0:
        raise ValueError("by lot")
    return lot % 4


def answer() -> int:
    return 42


def refuse() -> int:
    raise ValueError("refused")


class Failure(Exception):
    pass


@workflow(name="program")
async def program(code: list) -> Any:
    return await Interpreter().run(code)


class Interpreter:
    """Runs a program. Results are JSON values; failures are exceptions, which ``try`` turns into text."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.spawned: list[Any] = []

    async def run(self, node: list) -> Any:
        kind, *operands = node
        value = await getattr(self, f"do_{kind}")(*operands)
        note([kind, value])
        return value

    async def all(self, nodes: list) -> list:
        return [await self.run(node) for node in nodes]

    # -- leaves --

    async def do_act(self, name: str, arg: Any) -> Any:
        return await ACTIVITIES[name](arg)

    async def do_beta(self, arg: Any) -> Any:
        return await beta(arg, flag=True)

    async def do_sleep(self, seconds: float) -> None:
        await effects.sleep(seconds)

    async def do_pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def do_until(self, seconds: float) -> None:
        await effects.sleep_until(facts.now() + timedelta(seconds=seconds))

    async def do_signal(self, name: str, timeout: float | None) -> Any:
        return await effects.wait_signal(name, timeout=timeout)

    async def do_draw(self, kind: str) -> Any:
        return str(getattr(facts, kind)())

    async def do_side(self, fails: bool) -> Any:
        return facts.side_effect(refuse if fails else answer)

    async def do_patched(self, name: str) -> bool:
        return facts.patched(name)

    async def do_progress(self, value: Any) -> None:
        facts.set_progress(value)

    async def do_fail(self, text: str) -> None:
        raise Failure(text)

    async def do_pass(self) -> None:
        pass

    async def do_child(self, arg: Any) -> Any:
        return await offspring(arg)

    async def do_start(self, arg: Any, key: str | None) -> None:
        note(str((await lineage.start_child(offspring, arg, id=key)).id))

    async def do_handle(self, arg: Any, node: list, cancels: bool) -> Any:
        child = await lineage.start_child(offspring, arg)
        try:
            value = await self.run(node)
        finally:
            if cancels:
                child.cancel("not wanted")
        return [value, await child, await child]

    async def do_undoable(self, name: str, arg: Any, by_child: bool) -> Any:
        undo = offspring.bind(arg) if by_child else alpha.bind(f"undo {arg}")
        effect = offspring(arg) if name == "offspring" else ACTIVITIES[name](arg)
        return await effect.compensated_by(undo)

    # -- one after the other --

    async def do_saga(self, parallel: bool, *nodes: list) -> list:
        async with sagas.saga(parallel=parallel):
            return await self.all(list(nodes))

    async def do_undo(self, node: list, parallel: bool) -> Any:
        try:
            return await self.run(node)
        finally:
            note([type(error).__name__ for error in await sagas.compensate_all(parallel)])

    async def do_go_on(self, node: list) -> None:
        await self.run(node)
        lineage.continue_as_new(node)

    async def do_seq(self, *nodes: list) -> list:
        return await self.all(list(nodes))

    async def do_loop(self, times: int, node: list) -> list:
        return await self.all([node] * times)

    async def do_if(self, condition: list, then: list, otherwise: list) -> Any:
        value = await self.run(condition)
        return await self.run(then if len(json.dumps(value)) % 2 else otherwise)

    async def do_try(self, node: list, handler: list, final: list) -> Any:
        try:
            return await self.run(node)
        except (ActivityError, ChildError, Failure, TimeoutError) as exc:
            note(f"caught {type(exc).__name__} {exc}")
            return await self.run(handler)
        except BaseExceptionGroup as group:
            note(f"caught a group of {[type(e).__name__ for e in group.exceptions]}")
            return await self.run(handler)
        finally:
            await self.run(final)

    async def do_swallow(self, node: list) -> Any:
        try:
            return await self.run(node)
        except asyncio.CancelledError:
            return "swallowed"

    # -- side by side --

    async def do_gather(self, *nodes: list) -> list:
        return await asyncio.gather(*map(self.run, nodes))

    async def do_settle(self, *nodes: list) -> list:
        values = await asyncio.gather(*map(self.run, nodes), return_exceptions=True)
        return [type(value).__name__ if isinstance(value, BaseException) else value for value in values]

    async def do_group(self, *nodes: list) -> list:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.run(node)) for node in nodes]
        return [task.result() for task in tasks]

    async def do_first(self, *nodes: list) -> Any:
        tasks = [asyncio.create_task(self.run(node)) for node in nodes]
        done, pending = await gathering.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return done[0].result()

    async def do_race(self, *nodes: list) -> list:
        tasks = [asyncio.ensure_future(self.run(node)) for node in nodes]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=7)
        finished = [task.done() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return finished

    async def do_completed(self, *nodes: list) -> list:
        values = []
        async for task in gathering.as_completed([self.run(node) for node in nodes], timeout=50):
            values.append(type(task.exception()).__name__ if task.exception() else task.result())
        return values

    async def do_timeout(self, seconds: float, node: list) -> Any:
        async with asyncio.timeout(seconds):
            return await self.run(node)

    async def do_wait_for(self, seconds: float, node: list) -> Any:
        return await asyncio.wait_for(self.run(node), seconds)

    async def do_wait_for_effect(self, seconds: float, name: str, arg: Any) -> Any:
        return await asyncio.wait_for(ACTIVITIES[name](arg), seconds)

    async def do_wait_for_gather(self, seconds: float, *nodes: list) -> Any:
        return await asyncio.wait_for(asyncio.gather(*map(self.run, nodes)), seconds)

    async def do_wait_for_task(self, seconds: float, node: list) -> Any:
        return await asyncio.wait_for(asyncio.create_task(self.run(node)), seconds)

    async def do_shield(self, seconds: float, node: list) -> Any:
        task = asyncio.ensure_future(self.run(node))
        try:
            return await asyncio.wait_for(asyncio.shield(task), seconds)
        except TimeoutError:
            return await task

    async def do_spawn(self, node: list) -> None:
        async def quietly() -> None:
            try:
                await self.run(node)
            except Exception as exc:
                note(f"spawned: {type(exc).__name__}")

        self.spawned.append(asyncio.create_task(quietly()))

    async def do_semaphore(self, limit: int, *nodes: list) -> list:
        semaphore = asyncio.Semaphore(limit)

        async def limited(node: list) -> Any:
            async with semaphore:
                return await self.run(node)

        return await asyncio.gather(*map(limited, nodes))

    async def do_locked(self, node: list) -> Any:
        if self.lock.locked():
            return "busy"
        async with self.lock:
            return await self.run(node)

    async def do_queue(self, consumers: int, *nodes: list) -> list:
        queue: asyncio.Queue = asyncio.Queue(maxsize=1)
        taken: list = []

        async def consume(number: int) -> None:
            while True:
                item = await queue.get()
                taken.append([number, item])
                if item is not None:
                    await effects.sleep(1 + number)
                queue.task_done()

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(consume(number)) for number in range(consumers)]
            for node in nodes:
                await queue.put(await self.run(node))
            await queue.join()
            for worker in workers:
                worker.cancel()
        return taken

    async def do_timed_queue(self, *nodes: list) -> list:
        # Who gets what depends on who asks first: a consumer with a timeout has to ask as early as one without.
        queue: asyncio.Queue = asyncio.Queue()

        async def patient(number: int) -> Any:
            return [number, await queue.get()]

        async def impatient(number: int) -> Any:
            return [number, await asyncio.wait_for(queue.get(), 5)]

        consumers = [asyncio.create_task((impatient, patient)[i % 2](i)) for i in range(len(nodes))]
        for node in nodes:
            queue.put_nowait(await self.run(node))
        return await asyncio.gather(*consumers)

    async def do_barrier(self, *nodes: list) -> list:
        barrier = asyncio.Barrier(len(nodes))

        async def meet(node: list) -> Any:
            value = await self.run(node)
            return [await barrier.wait(), value]

        return await asyncio.gather(*map(meet, nodes))

    async def do_condition(self, *nodes: list) -> list:
        condition = asyncio.Condition()
        arrived: list = []

        async def arrive(node: list) -> None:
            value = await self.run(node)
            async with condition:
                arrived.append(value)
                condition.notify_all()

        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(arrive(node))
            async with condition:
                await condition.wait_for(lambda: len(arrived) == len(nodes))
        return arrived

    async def do_event(self, first: list, second: list) -> list:
        event = asyncio.Event()

        async def follow() -> Any:
            await event.wait()
            return await self.run(second)

        follower = asyncio.create_task(follow())
        try:
            value = await self.run(first)
        finally:
            event.set()
        return [value, await follower]

    async def do_stream(self, *nodes: list) -> list:
        async def stream() -> Any:
            try:
                for node in nodes:
                    yield await self.run(node)
            finally:
                note("stream closed")

        async with contextlib.aclosing(stream()) as values:
            return [value async for value in values]


# -- making them ------------------------------------------------------------------------------------------------

_DURATIONS = (1, 2, 3, 5, 0)


class Generator:
    """Makes programs. Low picks are the simple cases, which is where Hypothesis shrinks to.

    Args:
        pick: chooses a number below another.
        size: about how many nodes they have.
        families: whether they have children, compensations and successors, too.
    """

    def __init__(self, pick: Pick, *, size: int = 30, families: bool = False) -> None:
        self.pick = pick
        self.left = size
        self.families = families

    def program(self) -> list:
        nodes = [self.node(0) for _ in range(1 + self.pick(5))]
        # Most failures are caught at the top, or hardly any program would get far.
        return ["seq", *(["try", node, ["pass"], ["pass"]] if self.pick(4) else node for node in nodes)]

    def node(self, depth: int) -> list:
        self.left -= 1
        if depth >= 3 or self.left <= 0 or self.pick(3) == 0:
            return self.relative() if self.families and self.pick(2) else self.leaf()
        if self.families and self.pick(3) == 2:
            return self.clan(depth + 1)
        return self.branch(depth + 1)

    def relative(self) -> list:
        match self.pick(5):
            case 0 | 1:
                return ["child", self.pick(4)]
            case 2:
                return ["start", self.pick(4), [None, "k"][self.pick(2)]]
            case _:
                name = ("alpha", "beta", "gamma", "offspring")[self.pick(4)]
                return ["undoable", name, self.pick(4), bool(self.pick(2))]

    def clan(self, depth: int) -> list:
        match self.pick(6):
            case 0 | 1 | 2:
                return ["saga", bool(self.pick(2)), *self.several(depth)]
            case 3:
                return ["undo", self.node(depth), bool(self.pick(2))]
            case 4:
                return ["handle", self.pick(4), self.node(depth), bool(self.pick(2))]
            case _:
                return ["go_on", self.node(depth)]

    def duration(self) -> int:
        return _DURATIONS[self.pick(len(_DURATIONS))]

    def leaf(self) -> list:
        match self.pick(14):
            case 0 | 1 | 2:
                return ["act", ("alpha", "beta", "gamma")[self.pick(3)], self.pick(3)]
            case 3:
                return ["sleep", self.duration()]
            case 4:
                return ["pause", self.duration()]
            case 5 | 6:
                return ["signal", "ab"[self.pick(2)], (4, None)[self.pick(2)]]
            case 7 | 8:
                return ["draw", ("uuid4", "random", "now", "today")[self.pick(4)]]
            case 9:
                return ["side", bool(self.pick(2))]
            case 10:
                return ["patched", "pq"[self.pick(2)]]
            case 11:
                return ["until", self.duration()]
            case 12:
                return [["progress", 1], ["pass"], ["fail", "f"]][self.pick(3)]
            case _:
                return ["beta", self.pick(2)]

    def several(self, depth: int) -> list:
        return [self.node(depth) for _ in range(1 + self.pick(3))]

    def branch(self, depth: int) -> list:
        simple = ("gather", "group", "first", "race", "settle", "completed", "timed_queue", "barrier", "condition")
        match self.pick(20):
            case 0 | 1:
                return ["seq", *self.several(depth)]
            case 2 | 3 | 4 | 5:
                return [simple[self.pick(len(simple))], *self.several(depth)]
            case 6:
                return ["try", self.node(depth), self.node(depth), self.node(depth)]
            case 7:
                return ["timeout", self.duration(), self.node(depth)]
            case 8:
                return ["wait_for", self.duration(), self.node(depth)]
            case 9:
                return ["wait_for_gather", self.duration(), *self.several(depth)]
            case 10:
                return ["wait_for_task", self.duration(), self.node(depth)]
            case 11:
                return ["shield", self.duration(), self.node(depth)]
            case 12:
                return ["spawn", self.node(depth)]
            case 13:
                return ["semaphore", 1 + self.pick(2), *self.several(depth)]
            case 14:
                return ["queue", 1 + self.pick(2), *self.several(depth)]
            case 15:
                return ["event", self.node(depth), self.node(depth)]
            case 16:
                return ["stream", *self.several(depth)]
            case 17:
                return ["if", self.node(depth), self.node(depth), self.node(depth)]
            case 18:
                return ["loop", 1 + self.pick(3), self.node(depth)]
            case _:
                return [["locked", self.node(depth)], ["swallow", self.node(depth)]][self.pick(2)]


# -- changing them ----------------------------------------------------------------------------------------------


def mutated(code: list, pick: Pick) -> list:
    """Return a program with one change of the kind that people make to code: a step more, less, other, elsewhere."""
    code = json.loads(json.dumps(code))
    places = list(_places(code))
    sequence, index = places[pick(len(places))]
    node = sequence[index]
    match pick(6):
        case 0 if node[0] == "act":
            node[1] = {"alpha": "beta", "beta": "gamma", "gamma": "alpha"}[node[1]]
        case 1 if node[0] == "act":
            node[2] = [True, 1.0, 7, None][pick(4)]
        case 2 if node[0] == "signal":
            node[1] = "z"
        case 2 if node[0] in ("sleep", "pause", "until", "timeout", "wait_for"):
            node[1] += 1
        case 3:
            sequence[index] = ["pass"]
        case 4:
            other, position = places[pick(len(places))]
            if not (_holds(node, other[position]) or _holds(other[position], node)):
                sequence[index], other[position] = other[position], node
        case _:
            added = [["act", "alpha", 9], ["sleep", 1], ["signal", "a", None], ["side", False], ["draw", "uuid4"]]
            sequence[index] = ["seq", *([added[pick(5)], node] if pick(2) else [node, added[pick(5)]])]
    return code


def _places(node: list) -> Any:
    for index, part in enumerate(node):
        if isinstance(part, list) and part and isinstance(part[0], str):
            yield node, index
            yield from _places(part)


def _holds(node: list, other: Any) -> bool:
    return node is other or any(_holds(part, other) for part in node if isinstance(part, list))
