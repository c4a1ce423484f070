"""What a step of a run asks of others, put into the outbox of the entry that records the step."""

from __future__ import annotations

from collections.abc import Iterable

from continuum.core.commands import Command
from continuum.core.execution import Outcome
from continuum.worker.journal import Journal
from continuum.worker.live import Entry, LiveRun
from continuum.worker.outbox import Cancellation

__all__ = ["send", "send_end"]


def send(journal: Journal, live: LiveRun, commands: list[Command], cancels: Iterable[Command]) -> list[Command]:
    """Send what others carry out, and return the commands that are left for this worker.

    Children are started, and cancelled, in the commit of what led to it: whoever replays that finds it done.
    """
    left = commands
    if any(command.kind == "child" for command in commands):
        left = [command for command in commands if command.kind != "child"]
        children = [command.child for command in commands if command.kind == "child"]
        entry = journal.entry(live)
        entry.send().children += children
        entry.size += sum(len(child.input) for child in children)
    for command in cancels:
        delivery_id = f"cancel:{live.id}:{command.child.reply_to}"
        journal.entry(live).send().cancels.append(Cancellation(command.child.id, command.cancelled or "", delivery_id))
    return left


def send_end(entry: Entry, outcome: Outcome) -> None:
    """Send what the end of a run means to others: its successor, or the outcome for its parent."""
    if outcome.successor is not None:
        entry.send().successor = outcome.successor
    elif entry.live.execution.run.parent_run_id is not None:
        entry.send().report = True
