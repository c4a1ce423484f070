"""The activities of live runs: when an attempt starts, and what becomes of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from continuum import values
from continuum.core.commands import Command
from continuum.worker.activities import ActivityExecutor, Attempt, AttemptResult
from continuum.worker.clock import Clock
from continuum.worker.key_waits import KeyWaits
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
        self.clock = clock
        self._timers = timers
        self._on_change = on_change
        self.executor: ActivityExecutor = None  # type: ignore[assignment]  # set when the node is assembled
        self.key_waits = KeyWaits(engine)
        self.waiting = 0
        # Told whenever attempts have ended, with the results of those that no run of this worker asked for.
        self.on_slots: Callable[[list[AttemptResult]], None] = lambda results: None
        # Given what is asked for while nothing is begun any more.
        self.on_draining: Callable[[LiveRun, Iterable[Command]], None] = lambda live, commands: None

    def start(self, live: LiveRun, commands: Iterable[Command]) -> None:
        """Start what a run asks for. All that led to it must be durable."""
        if live.gone or live.leaving:
            return
        if self._engine.draining:
            self.on_draining(live, commands)
            return
        for command in commands:
            if command.answered:
                continue
            if command.not_before_us is not None and command.not_before_us > self.clock.now_us() + 500:
                self.try_later(live, command, command.not_before_us)
                continue
            attempt = self.attempt(live, command)
            live.attempts[command.id] = attempt
            if not live.active:
                self._engine.set_active(live, True)
            if attempt.idempotency_key is None:
                self.executor.submit(attempt)
            else:
                self.key_waits.ask(live, command, attempt)

    def attempt(self, live: LiveRun, command: Command) -> Attempt:
        """Return the next attempt of a command, to be made in this worker."""
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
            idempotency_key=command.key,
            heartbeat_timeout=options.heartbeat_timeout,
            run_token=live.token,
        )
        if live.beats and (details := live.beats.get(command.id)) is not None:
            attempt.heartbeat_details = values.decode(details)
        return attempt

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
        if result.message is not None:
            # It is in the inbox, where a read may have found it before us.
            self._engine.mail.deliver([result.message])
            self._engine.advance(live)
            return
        if result.attempt.details_json is not None:
            live.beats[command.id] = result.attempt.details_json
        execution = live.execution
        if result.ok:
            value = result.value_json or "null"
            if execution.activity_completed(command, value, result.started_us, result.ended_us) and (
                command.key is not None or live.beats
            ):
                self.answered(live, command, value)
        elif not command.answered:
            reported = result.error or {}
            error = {key: reported.get(key) for key in ("type", "message", "traceback", "details")}
            next_us = next_attempt_us(command, reported, result.ended_us)
            if next_us is None:
                execution.activity_failed(command, error, result.started_us, result.ended_us)
                self.answered(live, command, None)
            else:
                execution.activity_retried(command, error, result.started_us, result.ended_us, next_us)
                self.try_later(live, command, next_us)
        self._engine.advance(live)

    def answered(self, live: LiveRun, command: Command, value_json: str | None) -> None:
        """A command has its result, or with None has failed for good: what was kept for it goes, or stays, accordingly.

        To be called before the record of it is handed to the journal.
        """
        if command.key is not None:
            self.key_waits.note(live, command, value_json)
        if live.beats:
            self.forget_beats(live, [command.id])

    def forget_beats(self, live: LiveRun, command_ids: Iterable[str]) -> None:
        """Have the next commit delete what heartbeats of these commands have left."""
        for command_id in command_ids:
            if live.beats.pop(command_id, None) is not None:
                self._engine.journal.entry(live).send().dropped.append(command_id)

    def try_later(self, live: LiveRun, command: Command, due_us: int) -> None:
        """Make the command's next attempt when the time has come."""
        self.waiting += 1
        live.retries.add(command.id)
        self._timers.schedule(due_us, self._on_due, (live, command))

    def try_now(self, live: LiveRun, command: Command) -> None:
        """Make the next attempt of a command that waits for its time."""
        self._on_due((live, command), 0)

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
            self.answered(live, command, None)
        self._engine.queued.drop(live, commands)

    def forget(self, live: LiveRun, command: Command) -> None:
        """Whatever this worker does, or is about to do, for a command: nobody waits for it any more."""
        self._forget_retry(live, command.id)
        self.key_waits.forget(live, command.id)
        attempt = live.attempts.pop(command.id, None)
        if attempt is not None:
            self.executor.abandon(attempt)
            if attempt.details_json is not None:
                live.beats[command.id] = attempt.details_json
            self.on_slots([])

    def abandon_all(self, live: LiveRun) -> None:
        """Nobody wants the result of anything this run has under way."""
        for attempt in live.attempts.values():
            self.executor.abandon(attempt)
        live.attempts.clear()
        for command_id in list(live.retries):
            self._forget_retry(live, command_id)
            self.key_waits.forget(live, command_id)
