"""The activities of live runs: when an attempt starts, and what becomes of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from continuum.core.commands import Command
from continuum.worker.activities import ActivityExecutor, Attempt, AttemptResult
from continuum.worker.clock import Clock
from continuum.worker.live import LiveRun
from continuum.worker.retries import next_attempt_us
from continuum.worker.timers import Timers

if TYPE_CHECKING:
    from continuum.worker.engine import Engine

__all__ = ["Attempts"]


class Attempts:
    """Starts attempts for the engine and takes their results back to it.

    Attributes:
        waiting: how many commands wait for their next try.
    """

    def __init__(self, engine: Engine, clock: Clock, timers: Timers, on_change: Callable[[], None]) -> None:
        self._engine = engine
        self._clock = clock
        self._timers = timers
        self._on_change = on_change
        self.executor: ActivityExecutor = None  # type: ignore[assignment]  # set when the node is assembled
        self.waiting = 0
        # Told whenever attempts have ended, with the results of those that no run of this worker asked for.
        self.on_slots: Callable[[list[AttemptResult]], None] = lambda results: None

    def start(self, live: LiveRun, commands: Iterable[Command]) -> None:
        """Start what a run asks for. All that led to it must be durable."""
        if live.gone or live.leaving or self._engine.draining:
            return
        for command in commands:
            if command.answered:
                continue
            if command.not_before_us is not None and command.not_before_us > self._clock.now_us() + 500:
                self._try_later(live, command)
                continue
            options = command.options
            attempt = Attempt(
                live.id,
                command.id,
                command.definition,
                command.args,
                command.attempt,
                options.timeout,
                (live, command),
                options.retry,
            )
            live.attempts[command.id] = attempt
            self._engine.set_active(live, True)
            self.executor.submit(attempt)

    def on_results(self, results: list[AttemptResult]) -> None:
        """Take up what the executor reports."""
        post = self._engine.post
        others = []
        for result in results:
            key = result.attempt.key
            if type(key) is not tuple:
                others.append(result)
                continue
            live, _ = key
            if not live.gone:
                post(self._on_result, live, result)
        self.on_slots(others)

    def _on_result(self, live: LiveRun, result: AttemptResult) -> None:
        _, command = result.attempt.key  # type: ignore[misc]
        live.attempts.pop(command.id, None)
        execution = live.execution
        if result.ok:
            execution.activity_completed(command, result.value_json or "null", result.started_us, result.ended_us)
        elif not command.answered:
            reported = result.error or {}
            error = {key: reported.get(key) for key in ("type", "message", "traceback", "details")}
            next_us = next_attempt_us(command, reported, result.ended_us)
            if next_us is None:
                execution.activity_failed(command, error, result.started_us, result.ended_us)
            else:
                execution.activity_retried(command, error, result.started_us, result.ended_us, next_us)
                self._try_later(live, command)
        self._engine.advance(live)

    def _try_later(self, live: LiveRun, command: Command) -> None:
        self.waiting += 1
        live.retries.add(command.id)
        self._timers.schedule(command.not_before_us or 0, self._on_due, (live, command))

    def _on_due(self, subject: tuple[LiveRun, Command], due_us: int) -> None:
        live, command = subject
        if command.id in live.retries:
            self._forget_retry(live, command.id)
            self._engine.start_when_durable(live, [command])

    def _forget_retry(self, live: LiveRun, command_id: str) -> None:
        if command_id in live.retries:
            live.retries.remove(command_id)
            self.waiting -= 1
            self._on_change()

    def abandon(self, live: LiveRun, commands: Iterable[Command]) -> None:
        """Nobody wants the results of these any more."""
        commands = list(commands)
        for command in commands:
            self.forget(live, command)
        self._engine.queued.drop(live, commands)

    def forget(self, live: LiveRun, command: Command) -> None:
        """Whatever this worker does, or is about to do, for a command: nobody waits for it any more."""
        self._forget_retry(live, command.id)
        attempt = live.attempts.pop(command.id, None)
        if attempt is not None:
            self.executor.abandon(attempt)
            self.on_slots([])

    def abandon_all(self, live: LiveRun) -> None:
        """Nobody wants the result of anything this run has under way."""
        for attempt in live.attempts.values():
            self.executor.abandon(attempt)
        live.attempts.clear()
        for command_id in list(live.retries):
            self._forget_retry(live, command_id)
