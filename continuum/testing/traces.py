"""What a run was seen to do: executions that keep a trace, and snapshots of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from continuum.core.commands import Command
from continuum.core.execution import Execution
from continuum.core.loop import DeterministicLoop
from continuum.core.outcomes import Outcome

__all__ = ["Asked", "Recorder", "State"]


class Asked(NamedTuple):
    """A command as the code issued it: what must be the same at every replay."""

    id: str
    kind: str
    name: str | None
    args: str
    due_us: int | None


class State(NamedTuple):
    """A snapshot of a run, equal for a live run and a replay that stand at the same place."""

    asked: tuple[Asked, ...]
    notes: tuple[Any, ...]
    pending: tuple[Any, ...]
    waiting_on: str
    time_us: int
    progress: str | None
    outcome: Any


class Recorder(Execution):
    """An execution that keeps a trace: every command the code issues, and every value it notes."""

    def _blank(self, loop: DeterministicLoop) -> None:
        super()._blank(loop)
        self.asked: list[Asked] = []
        self.notes: list[Any] = []
        self.issue = _traced(self.issue, self.asked, loop)
        self.start_timer = _traced(self.start_timer, self.asked, loop)

    def state(self) -> State:
        """Everything about the run that an observer could tell, right now."""
        return State(
            asked=tuple(self.asked),
            notes=tuple(self.notes),
            pending=tuple((c.id, c.kind, c.name, c.args, c.attempt, c.due_us) for c in self.pending.values()),
            waiting_on=json.dumps(self.waiting_on()),
            time_us=self.loop.time_us,
            progress=self.progress,
            outcome=None if self.outcome is None else (self.outcome.state, self.outcome.result, _kind(self.outcome)),
        )


def _traced(
    issue: Callable[..., Command | None], trace: list[Asked], loop: DeterministicLoop
) -> Callable[..., Command | None]:
    def traced(*args: Any) -> Command | None:
        command = issue(*args)
        if command is not None:
            trace.append(Asked(command.id, command.kind, command.name, command.args, command.due_us))
        else:  # answered at once, so that there is no command
            (effect,) = args
            scope = loop.scope()
            text = effect.definition.encode_arguments(effect.args, effect.kwargs)
            trace.append(Asked(f"{scope.path}:{scope.effects}", effect.kind, effect.name, text, None))
        return command

    return traced


def _kind(outcome: Outcome) -> str | None:
    return None if outcome.error is None else outcome.error["type"]
