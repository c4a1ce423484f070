"""Commands with an idempotency key: when they get to run their bodies, and what becomes of the key afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from continuum.core.commands import Command
from continuum.worker.attempt import Attempt
from continuum.worker.connections import Backoff
from continuum.worker.keys import KeyAnswer, KeyRequest, Keys, KeyState, key_id
from continuum.worker.live import LiveRun
from continuum.worker.outbox import KeyOutcome
from continuum.worker.queues import DEFAULT_QUEUE

if TYPE_CHECKING:
    from continuum.worker.engine import Engine

__all__ = ["KeyWaits"]

# Pauses between two looks at a key that somebody else holds, in seconds. What this worker itself does with a key is
# known at once; the looks are for what others do.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0


@dataclass(slots=True)
class _Wait:
    live: LiveRun
    command: Command
    key_id: UUID
    pause: Backoff = field(default_factory=lambda: Backoff(FIRST_PAUSE, LONGEST_PAUSE))


class KeyWaits:
    """Asks for the keys of commands, has them wait while others hold them, and gives keys back.

    A command that waits has no attempt: its run counts as quiet meanwhile, so that those who wait for a key never keep
    out the run that holds it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.keys: Keys = None  # type: ignore[assignment]  # set when the node is assembled
        self._waits: dict[tuple[UUID, str], _Wait] = {}
        self._by_key: dict[UUID, set[tuple[UUID, str]]] = {}

    def ask(self, live: LiveRun, command: Command, attempt: Attempt) -> None:
        """Make the attempt once the command holds its key; or have the command take the result that is there."""
        request = KeyRequest(live.id, command.id, command.name or "", attempt.idempotency_key or "")
        self.keys.ask(request, lambda answer: self._engine.post(self._on_answer, live, command, attempt, answer))

    def _on_answer(self, live: LiveRun, command: Command, attempt: Attempt, answer: KeyAnswer) -> None:
        if attempt.settled:
            # Given up while the claim was under way: the release that went before found nothing to give back.
            if answer.state is KeyState.OURS and command.answered:
                self.note(live, command, None)
            return
        if answer.state is KeyState.OURS:
            self.forget(live, command.id)
            queued = self._engine.queued
            if queued.is_queued(command.options) or self._engine.draining:
                live.attempts.pop(command.id, None)
                queued.send(live, command, command.options.queue or DEFAULT_QUEUE)
                self._engine.advance(live)
            else:
                self._engine.attempts.executor.submit(attempt)
            return
        live.attempts.pop(command.id, None)
        if answer.state is KeyState.HELD:
            self._wait(live, command, key_id(command.name or "", attempt.idempotency_key or ""))
        else:
            self.forget(live, command.id)
            now_us = self._engine.attempts.clock.now_us()
            live.execution.activity_completed(command, answer.value_json or "null", now_us, now_us)
        self._engine.advance(live)

    def _wait(self, live: LiveRun, command: Command, key: UUID) -> None:
        place = (live.id, command.id)
        wait = self._waits.get(place)
        if wait is None or wait.live is not live:
            wait = self._waits[place] = _Wait(live, command, key)
            self._by_key.setdefault(key, set()).add(place)
        attempts = self._engine.attempts
        attempts.try_later(live, command, attempts.clock.now_us() + round(wait.pause.next() * 1e6))

    def look_again(self, keys: Iterable[UUID]) -> None:
        """These keys have a result now, or are free: whoever waits for them here need not wait any longer."""
        for key in keys:
            for place in list(self._by_key.get(key, ())):
                wait = self._waits[place]
                self._engine.attempts.try_now(wait.live, wait.command)

    def note(self, live: LiveRun, command: Command, value_json: str | None) -> None:
        """Have the next commit put a result under the key of a command that has one; or give it back, with None."""
        outcome = KeyOutcome(key_id(command.name or "", command.key or ""), live.id, command.id, value_json)
        self._engine.journal.entry(live).send().keys.append(outcome)

    def forget(self, live: LiveRun, command_id: str) -> None:
        """A command waits no more."""
        wait = self._waits.pop((live.id, command_id), None) if self._waits else None
        if wait is not None:
            places = self._by_key[wait.key_id]
            places.discard((live.id, command_id))
            if not places:
                del self._by_key[wait.key_id]
