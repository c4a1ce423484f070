"""Activities that runs of this worker have handed over to whichever worker serves their queue.

A row of the task table stands for each; it is written, and taken away, in the commit of the step that wants it so, and
what comes of it arrives by mail.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from continuum.conf import settings as continuum_settings
from continuum.core.commands import Command
from continuum.core.options import ActivityOptions
from continuum.worker.live import LiveRun, Message
from continuum.worker.outbox import TaskStart
from continuum.worker.queues import DEFAULT_QUEUE
from continuum.worker.task_options import encode_options

if TYPE_CHECKING:
    from continuum.worker.engine import Engine

__all__ = ["Queued"]

logger = logging.getLogger("continuum.worker")

# A result travels from worker to run as it is: what was encoded once is not taken apart and put together again.
_RESULT = re.compile(r'\{"attempt": ?(\d+), ?"started": ?(\d+), ?"ended": ?(\d+), ?"result": ?')


class Queued:
    """Hands over activities, and takes up what comes of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # With limits on it, the default queue is a queue like any other: they hold for everything in it.
        self._default_is_limited = bool(continuum_settings.QUEUES.get(DEFAULT_QUEUE))

    def is_queued(self, options: ActivityOptions) -> bool:
        """Tell whether an activity is for the workers of a queue rather than for the run's own."""
        return (
            self._default_is_limited
            or options.priority != 0
            or (options.queue is not None and options.queue != DEFAULT_QUEUE)
        )

    def route(self, live: LiveRun, commands: list[Command]) -> list[Command]:
        """Have the commands that are for a queue sent along with the step's record; returns the others."""
        stays = []
        for command in commands:
            if command.id in live.queued:
                continue
            # One with an idempotency key has to get hold of that first.
            if command.key is not None or not self.is_queued(command.options):
                stays.append(command)
            else:
                self.send(live, command, command.options.queue or DEFAULT_QUEUE)
        return stays

    def send(self, live: LiveRun, command: Command, queue: str) -> None:
        """Have the row of a task written in the next commit."""
        entry = self._engine.journal.entry(live)
        entry.send().tasks.append(
            TaskStart(
                command.id,
                command.definition.name,
                queue,
                command.options.priority,
                command.args,
                encode_options(command),
                command.attempt,
                command.not_before_us or 0,
            )
        )
        entry.size += len(command.args)
        live.queued.add(command.id)

    def hand_over(self, live: LiveRun, command: Command) -> None:
        """Let others carry out what this worker cannot begin soon."""
        self.send(live, command, DEFAULT_QUEUE)
        self._engine.advance(live)

    def drop(self, live: LiveRun, commands: Iterable[Command]) -> None:
        """Nobody wants the results of these any more: their rows go in the commit that says so."""
        self._drop(live, [command.id for command in commands if command.id in live.queued])

    def drop_stale(self, live: LiveRun) -> None:
        """The history is lived through: drop the rows of what the code does not wait for."""
        pending = live.execution.pending
        self._drop(live, [command_id for command_id in live.queued if command_id not in pending])

    def _drop(self, live: LiveRun, command_ids: list[str]) -> None:
        if command_ids:
            live.queued.difference_update(command_ids)
            self._engine.journal.entry(live).send().dropped += command_ids

    def on_message(self, live: LiveRun, message: Message) -> None:
        """Take up what came of an attempt. Nobody may wait for it any more: then it is forgotten."""
        command = live.execution.pending.get(message.command_id or "")
        if command is None or command.kind != "activity":
            return
        try:
            self._answer(live, command, message.payload or "")
        except (ValueError, KeyError, TypeError):
            logger.exception("run %s: the outcome of %s cannot be read and is dropped", live.id, command)

    def _answer(self, live: LiveRun, command: Command, payload: str) -> None:
        completed = _RESULT.match(payload)
        if completed is not None:
            attempt, started_us, ended_us = map(int, completed.groups())
            result, error, next_us = payload[completed.end() : payload.rindex("}")], None, None
        else:
            data = json.loads(payload)
            attempt, started_us, ended_us = data["attempt"], data["started"], data["ended"]
            error, next_us = data.get("error"), data.get("next")
            result = json.dumps(data["result"], ensure_ascii=False) if error is None else ""
        # It is settled by this; what this worker may have been about to do for it would be too much.
        self._engine.attempts.forget(live, command)
        command.attempt = attempt
        if error is not None and next_us is not None:
            live.queued.add(command.id)  # its row waits for the next attempt, whoever makes it
            live.execution.activity_retried(command, error, started_us, ended_us, next_us)
            return
        live.queued.discard(command.id)
        if error is None:
            live.execution.activity_completed(command, result, started_us, ended_us)
            self._engine.attempts.answered(live, command, result)
        else:
            live.execution.activity_failed(command, error, started_us, ended_us)
            self._engine.attempts.answered(live, command, None)
