"""Activities from queues: claims tasks while there are free slots, and has them carried out."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any
from uuid import UUID

import psycopg

from continuum import values
from continuum.core.definitions import ActivityDefinition, registry
from continuum.core.failures import describe_exception
from continuum.exceptions import ContinuumError
from continuum.worker import shared_queues, task_claims
from continuum.worker.activities import ActivityExecutor, Attempt, AttemptResult
from continuum.worker.arrays import text_array
from continuum.worker.clock import Clock
from continuum.worker.connections import transaction
from continuum.worker.links import Link
from continuum.worker.outbox import Sent
from continuum.worker.queues import DEFAULT_QUEUE, Queues
from continuum.worker.sql import load
from continuum.worker.task_claims import Head, Task
from continuum.worker.task_options import decode_options
from continuum.worker.task_outcomes import Outcome, Outcomes, failed, outcome_of

__all__ = ["Tasks"]

logger = logging.getLogger("continuum.worker")

# Tasks claimed by one statement.
MOST_CLAIMED = 200
# How soon an attempt ends whose run does not want its result any more, in seconds.
CHECK_EVERY = 0.7
# Seconds between looks, while it is at none, for tasks that a claim gave to it after it had given up waiting for it.
STRANGERS_EVERY = 5.0
# A limited queue that another worker is just claiming from is free again in a moment, in seconds.
TURN = 0.02
# How often it is looked whether attempts have begun, in seconds.
BEGUN_EVERY = 0.005


class PoisonActivityError(ContinuumError):
    """Worker after worker died while it was at one attempt of an activity."""

    def __init__(self, task: Task) -> None:
        super().__init__(
            f"{task.recoveries} workers died, one after the other, while they were at attempt {task.attempt} of "
            f"{task.activity}: it is not tried again"
        )


class Tasks:
    """Claims tasks for one worker.

    Args:
        connect: opens an autocommit connection, for a purpose.
        worker_id: the worker.
        queues: the queues it serves.
        executor: carries the attempts out.
        activities: what it can carry out.
        clock: the worker's clock.
        poll_interval: seconds between looks that no hint asked for.
        max_recoveries: how many workers may die at one attempt.
        on_sent: called with whom to tell of what was written.

    Attributes:
        running: the tasks this worker is at.
        news: grows whenever there may be new tasks, or mail for runs, that a look before did not show.
        draining: no more claims.
    """

    def __init__(
        self,
        connect: Callable[[str], Awaitable[psycopg.AsyncConnection[Any]]],
        worker_id: int,
        *,
        queues: Queues,
        executor: ActivityExecutor,
        activities: Iterable[ActivityDefinition],
        clock: Clock,
        poll_interval: float,
        max_recoveries: int,
        on_sent: Callable[[Sent], None],
    ) -> None:
        self.queues = queues
        self.running: dict[tuple[UUID, str], Task] = {}
        self.news = 0
        self.draining = False
        self.link = Link(lambda: connect("tasks"), "tasks", on_broken=self._doubt)
        self.outcomes = Outcomes(lambda: connect("outcomes"), worker_id, on_written=self._on_written)
        self._worker_id = worker_id
        self._executor = executor
        self._clock = clock
        self._poll_interval = poll_interval
        self._max_recoveries = max_recoveries
        self._on_sent = on_sent
        names: dict[bool, list[str]] = {False: [], True: []}
        for definition in activities:
            names[definition.is_async].append(definition.name)
        self._activities = {is_async: text_array(sorted(found)) for is_async, found in names.items() if found}
        self._all_activities = text_array(sorted(names[False] + names[True]))
        self._wake = asyncio.Event()
        self._backlog = False  # there may be more than there was room for
        self._doubtful = False  # a task may be this worker's without its knowing: the answer to a claim was lost
        self._marks = 0
        self._noting: set[asyncio.Task[None]] = set()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run for as long as the node serves, by name."""
        return {"tasks": self._claim_forever(), "task check": self._check_forever(), "outcomes": self.outcomes.run()}

    async def close(self) -> None:
        """Close the connection."""
        for noting in self._noting:
            noting.cancel()
        await self.link.close()

    # -- when to look -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """There may be new tasks."""
        self._wake.set()

    def on_sent(self, queues: Iterable[str]) -> None:
        """This worker has just made tasks."""
        self.news += 1
        if any(map(self.queues.serves, queues)):
            self.look()

    async def _claim_forever(self) -> None:
        if not self._activities:
            return
        # Not before the node says so: until it holds its lock, nobody would notice for long that it has died.
        await self._wake.wait()
        pause = 0.0
        while True:
            if pause > 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            self._wake.clear()
            # Never quite the same pause, so that nodes started together do not ask together for ever.
            pause = self._poll_interval * random.uniform(0.8, 1.0)
            if not self.draining:
                pause = min(pause, await self.link.use(self._round))

    # -- claiming -----------------------------------------------------------------------------------------------

    async def _round(self, connection: psycopg.AsyncConnection[Any]) -> float:
        """Claim what there is room for; returns in how many seconds there will, or may, be more."""
        self._backlog = not any(map(self._executor.free, self._activities))
        if self._backlog:
            return self._poll_interval
        heads = await task_claims.due(connection, self.queues.served)
        pause = min((head.next_us / 1e6 for head in heads if head.next_us is not None), default=self._poll_interval)
        groups: dict[str | None, list[Head]] = {}
        for head in heads:
            if head.is_due:
                groups.setdefault(head.queue if self.queues.is_limited(head.queue) else None, []).append(head)
        # No queue before the others: one with an endless backlog must leave room for them.
        for queue, found in random.sample(list(groups.items()), len(groups)):
            found.sort(key=lambda head: (-head.priority, random.random()))
            if queue is not None and self.queues.is_shared(queue):
                again = await self._claim_shared(connection, queue, found)
            else:
                again = await self._claim(connection, queue, found)
            pause = min(pause, again)
        return pause

    def _room(self, queue: str | None, is_async: bool) -> int:
        free = min(self._executor.free(is_async), MOST_CLAIMED)
        return free if queue is None else self.queues.room(queue, free)

    async def _claim(self, connection: psycopg.AsyncConnection[Any], queue: str | None, heads: list[Head]) -> float:
        again = self._poll_interval
        for is_async, names in self._activities.items():
            limit = self._room(queue, is_async)
            if limit <= 0:
                self._backlog = True
                continue
            claimed = await task_claims.claim(connection, self._worker_id, heads, names, limit)
            for task in claimed:
                self._start(task)
            if len(claimed) == limit:
                self._backlog, again = True, 0.0
        return again

    async def _claim_shared(self, connection: psycopg.AsyncConnection[Any], queue: str, heads: list[Head]) -> float:
        self._marks += 1
        mark = f"{self._worker_id}:{self._marks}"
        claimed: list[Task] = []
        async with transaction(connection):
            limits = await shared_queues.take(connection, queue, self.queues)
            if limits is None:
                return TURN * random.uniform(0.5, 1.5)
            total = min(limits.room, self.queues.room(queue, MOST_CLAIMED))
            for is_async, names in self._activities.items():
                limit = min(total - len(claimed), self._room(queue, is_async))
                if limit > 0:
                    claimed += await task_claims.claim(connection, self._worker_id, heads, names, limit)
            if claimed and limits.log is not None:
                await limits.note_claim(connection, queue, len(claimed), mark)
        for task in claimed:
            self._start(task)
        if claimed and limits.log is not None:
            noting = asyncio.create_task(self._note_starts(queue, claimed, mark))
            self._noting.add(noting)
            noting.add_done_callback(self._noting.discard)
        self._backlog = True
        return min(self._poll_interval, limits.again(len(claimed)))

    def _start(self, task: Task) -> None:
        try:
            if task.recoveries >= self._max_recoveries:
                raise PoisonActivityError(task)
            task.made = self._attempt(task)
        except Exception as error:
            # A row that cannot be understood, or should not be, is no reason to stop claiming.
            logger.error("run %s: %s cannot be carried out: %s", task.run_id, task.activity, error)
            now_us = self._clock.now_us()
            self.outcomes.add(failed(task, describe_exception(error), now_us, now_us))
            return
        self.running[task.place] = task
        self.queues.begun(task.queue)
        self._executor.submit(task.made)

    def _attempt(self, task: Task) -> Attempt:
        options = task.options = decode_options(task.options_json)
        return Attempt(
            task.run_id,
            task.command_id,
            registry.activity(task.activity),
            task.args,
            task.attempt,
            options.timeout,
            task,
            options.retry,
            None if task.details is None else values.decode(task.details),
            options.key,
            options.heartbeat_timeout,
            task_token=task.token,
        )

    async def _note_starts(self, queue: str, tasks: list[Task], mark: str) -> None:
        """Have the rate limit count from when these have really started."""
        while any(self.running.get(task.place) is task and not task.made.started_us for task in tasks):
            await asyncio.sleep(BEGUN_EVERY)
        now_us = self._clock.now_us()
        begun = [task.made.started_us or now_us for task in tasks if task.made is not None]
        last_us = max(begun, default=now_us)
        await self.link.use(lambda connection: shared_queues.note_start(connection, queue, self.queues, mark, last_us))
        self.look()

    # -- what comes of it ---------------------------------------------------------------------------------------

    def on_slots(self, results: list[AttemptResult]) -> None:
        """Attempts have ended, of these tasks or of others."""
        for result in results:
            task = result.attempt.key
            assert isinstance(task, Task)
            if self._forget(task):
                if result.message is None:
                    self.outcomes.add(outcome_of(task, result))
                else:  # it has recorded its outcome itself, together with what it wrote
                    self._on_written([Outcome(task, "")], {task.place: result.owner})
        if self._backlog:
            self.look()

    def _forget(self, task: Task) -> bool:
        if self.running.get(task.place) is not task:
            return False
        del self.running[task.place]
        self.queues.ended(task.queue)
        return True

    def _on_written(self, batch: list[Outcome], counted: dict[tuple[UUID, str], int | None]) -> None:
        self.news += 1
        if len(counted) < len(batch):
            self._doubt()
        sent = Sent(news={run_id: owner for (run_id, _), owner in counted.items()})
        for outcome in batch:
            if outcome.next_us is not None or self.queues.is_shared(outcome.task.queue):
                # A retry to wait for, or a place that others may have waited for.
                self.look()
                if self.queues.is_shared(outcome.task.queue):
                    sent.queues.add(outcome.task.queue)
        self._on_sent(sent)

    # -- whose tasks they are -----------------------------------------------------------------------------------

    def _doubt(self) -> None:
        self._doubtful = True

    async def _check_forever(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_EVERY)
            # The look after the connection broke is not enough: the server may have been at the claim for longer.
            if self.running or self._doubtful or time.monotonic() - looked >= STRANGERS_EVERY:
                await self.link.use(self._check)
                looked = time.monotonic()

    async def _check(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Stop what is not this worker's any more, and give back what it was given without knowing."""
        self._doubtful = False
        known = list(self.running.values())
        owned = await task_claims.owned_by(connection, self._worker_id)
        for task in known:
            if owned.get(task.place) != task.token and self._forget(task):
                logger.info("run %s: nobody waits for %s any more", task.run_id, task.activity)
                self._executor.abandon(task.made)
                self._wake.set()
        claimed = {task.token for task in known}
        strange = [
            token
            for place, token in owned.items()
            if token not in claimed and place not in self.running and place not in self.outcomes.places
        ]
        if strange:
            await task_claims.give_back(connection, self._worker_id, strange)
            self.look()
            self._on_sent(Sent(queues={DEFAULT_QUEUE}))

    # -- the end ------------------------------------------------------------------------------------------------

    async def hand_back(self) -> None:
        """Give back the tasks that were claimed and have not begun, for others to take at once."""

        async def give_back(connection: psycopg.AsyncConnection[Any]) -> list[Task]:
            # A claim that was under way has ended by now. What the executor has begun, or reported, is not among these.
            waiting = [task for task in self.running.values() if task.made.settled or not task.made.submitted]
            if waiting:
                await task_claims.give_back(connection, self._worker_id, [task.token for task in waiting])
            return waiting

        given_back = await self.link.use(give_back)
        for task in given_back:
            self._forget(task)
        if given_back:
            self._on_sent(Sent(queues={task.queue for task in given_back}))

    @property
    def busy(self) -> bool:
        """Whether anything is being done, or reported."""
        return bool(self.running or self.outcomes.busy)

    async def nothing_left(self) -> int:
        """Wait until there is nothing left that this worker could do, and return ``news`` as it was then."""
        parameters = {
            "queues": None if self.queues.served is None else text_array(self.queues.served),
            "activities": self._all_activities,
        }

        async def left(connection: psycopg.AsyncConnection[Any]) -> bool:
            cursor = await connection.execute(load("tasks_left"), parameters, prepare=True)
            row = await cursor.fetchone()
            return bool(row and row[0])

        while True:
            news = self.news
            if not self.busy and not await self.link.use(left) and not self.busy:
                return news
            await asyncio.sleep(0.05)

    async def leave(self) -> int:
        """Report what has ended, give back the rest, and return how many that were."""
        await self.outcomes.flush()
        self.running.clear()
        return await self.link.use(lambda connection: task_claims.give_back(connection, self._worker_id))
