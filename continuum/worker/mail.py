"""Messages on their way from the inbox to live runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from continuum.worker.clock import Clock
from continuum.worker.live import Entry, LiveRun, Message

if TYPE_CHECKING:
    from continuum.worker.engine import Engine

__all__ = ["Mail"]

logger = logging.getLogger("continuum.worker")


class Mail:
    """Hands messages to live runs, each once however often and however late it is read."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._removed: list[Entry] = []

    def reading(self) -> None:
        """To be called when a read of the inbox begins; there is one read at a time.

        A read may show what was removed after it began. Only one that begins now cannot show what was removed by now.
        """
        removed, self._removed = self._removed, []
        for entry in removed:
            entry.live.seen.difference_update(entry.consumed, entry.kept)

    def removed(self, entry: Entry) -> None:
        """The removal of an entry's messages is durable."""
        if entry.consumed or entry.kept:
            self._removed.append(entry)

    def deliver(self, messages: Iterable[Message]) -> None:
        """Hand over unread messages; those for runs that are not live here, or stand still, are left where they are."""
        live_runs = self._engine.live
        by_run: dict[UUID, list[Message]] = {}
        for message in messages:
            live = live_runs.get(message.run_id)
            if live is not None and not live.held_back and message.id not in live.seen:
                live.seen.add(message.id)
                by_run.setdefault(message.run_id, []).append(message)
        for run_id, of_run in by_run.items():
            self._engine.post(self.hand_over, live_runs[run_id], of_run)

    def hand_over(self, live: LiveRun, messages: list[Message]) -> None:
        """Give a run its messages, in order."""
        if live.replaying:
            self._engine.post(self.hand_over, live, messages)
            return
        execution = live.execution
        now_us = self._clock.now_us()
        for message in messages:
            if execution.outcome is not None:
                break
            entry = self._engine.journal.entry(live)
            entry.remove(message)
            if message.kind == "signal":
                execution.signal_received(message.name or "", message.payload or "null", now_us)
            elif message.kind == "cancel":
                execution.cancel_requested(message.reason, now_us)
            elif message.kind == "child":
                execution.child_ended(message.command_id or "", message.payload or "null", now_us)
            elif message.kind == "activity":
                self._engine.queued.on_message(live, message)
            else:
                logger.warning("run %s: a message of unknown kind %r is dropped", live.id, message.kind)
        self._engine.advance(live)
