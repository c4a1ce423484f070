"""Giving everything back when a worker is told to stop: each run as soon as nothing of it is being done here.

A run that waits, or whose activities are still in line, goes at once, so that the next worker has it within
milliseconds. One with an activity under way stays until that has ended, and does not wait for those of other runs. What
it asks for meanwhile others carry out, so that a branch of it that could go on is not held up by one that takes its
time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from continuum.core.commands import Command
from continuum.worker.activities import ActivityExecutor, AttemptResult
from continuum.worker.live import LiveRun
from continuum.worker.queues import DEFAULT_QUEUE
from continuum.worker.tasks import Tasks

if TYPE_CHECKING:
    from continuum.worker.engine import Engine

__all__ = ["Drain"]


class Drain:
    """The end of one worker's work.

    Args:
        engine: whose runs are given back.
        executor: carries out what they have under way.
        tasks: the activities this worker has claimed.
    """

    def __init__(self, engine: Engine, executor: ActivityExecutor, tasks: Tasks) -> None:
        self._engine = engine
        self._executor = executor
        self._tasks = tasks
        self._held: set[LiveRun] = set()  # for what they have under way

    def begin(self) -> None:
        """Claim and begin nothing more, and give back the runs for which nothing is being done. On the loop."""
        engine, attempts = self._engine, self._engine.attempts
        engine.draining = self._tasks.draining = True
        attempts.on_slots, attempts.on_draining = self._on_slots, self._pass_on
        in_line = [attempt for attempt in self._executor.begin_nothing_more() if type(attempt.key) is tuple]
        # One that has to get hold of its idempotency key first is not in the executor's line yet.
        in_line += [a for live in engine.live.values() for a in live.attempts.values() if not a.submitted]
        for attempt in in_line:
            live, command = attempt.key  # type: ignore[misc]
            live.attempts.pop(command.id, None)
        for live in engine.live.values():
            if live.attempts:
                self._held.add(live)
            else:
                engine.post(self._give_back, live)
        for attempt in in_line:
            live, command = attempt.key  # type: ignore[misc]
            self._pass_on(live, [command])

    def _give_back(self, live: LiveRun) -> None:
        if not live.attempts:
            self._held.discard(live)
            self._engine.release(live)

    def _on_slots(self, results: list[AttemptResult]) -> None:
        """Attempts have ended: of runs that are held for them, or of tasks."""
        self._tasks.on_slots(results)
        for live in self._held:
            # Posted, as what has come of the attempts is on its way there and comes first.
            self._engine.post(self._give_back, live)

    def _pass_on(self, live: LiveRun, commands: Iterable[Command]) -> None:
        """A run asks for activities, of which none begins here any more."""
        if live not in self._held or not live.attempts:
            return  # it is on its way to where they begin
        attempts = self._engine.attempts
        for command in commands:
            if command.answered:
                continue
            if command.key is None:
                self._engine.queued.send(live, command, DEFAULT_QUEUE)
            else:
                attempts.key_waits.ask(live, command, attempts.attempt(live, command))
