"""Paranoid mode: a run is lived through again from its own history, step by step, and has to arrive at the same place.

What differs is found before it has had any effect: a step that cannot be repeated is not handed out. Here is how a run
is compared with its replay in the same process; :mod:`continuum.determinism.twin` has it compared with one in another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from continuum.conf import settings as continuum_settings
from continuum.core.commands import Command
from continuum.core.execution import Execution, Step
from continuum.core.history import Event
from continuum.core.identity import RunIdentity
from continuum.core.outcomes import Outcome
from continuum.core.watching import Watch
from continuum.exceptions import NonDeterminismError, ReplayDriftError, WorkflowDeadlockError

__all__ = [
    "ParanoidExecution",
    "Shadow",
    "UnrepeatableError",
    "enabled",
    "execution_class",
    "live_through",
    "request",
    "standing",
]

logger = logging.getLogger("continuum.run")

#: Runs of up to so many events, and commands that are open, are compared at every step.
EVERY_STEP = 200
#: Larger ones at their first step, when their history has grown by this part of their size, and at the end: that makes
#: some twenty replays each time they grow to three times their size, whatever that is.
GROWTH = 1 / 20

_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
_NOT_TO_REPEAT = ("WorkflowDeadlockError", "NonDeterminismError")
_SUSPECTS = (
    "a clock (use now()), randomness (random(), uuid4()), a setting or variable (side_effect()), the address of an "
    "object (id(), the text of an object without __repr__), or what outlives the run: a global, a cache, the state of "
    "a class"
)
_SUSPECTS_ELSEWHERE = (
    "the order of a set or hash() of a string, which differ from process to process (use sorted(), a list or a dict), "
    "a setting or variable that differs (side_effect()), or what this process did before: a global, a cache"
)


def enabled() -> bool:
    """Whether paranoid mode is on: by the environment's ``CONTINUUM_PARANOID``, else by ``CONTINUUM["PARANOID"]``.

    Raises:
        ImproperlyConfigured: either is neither on nor off.
    """
    said = os.environ.get("CONTINUUM_PARANOID")
    if said is None:
        return continuum_settings.PARANOID
    if said.lower() not in _ON + _OFF:
        raise ImproperlyConfigured(f"The environment's CONTINUUM_PARANOID must be 1 or 0; it is {said!r}.")
    return said.lower() in _ON


class UnrepeatableError(NonDeterminismError, ReplayDriftError):
    """A run and its own replay part.

    Attributes:
        run: the run's id.
        position: the command where they part.
        history: what the run did there.
        code: what the replay does there.
        seed: the hash seed of the process the replay was made in, or None if it was the same process.
    """

    def __init__(self, run: Any, position: str, history: str, code: str, seed: str | None = None) -> None:
        super().__init__(run, position, history, code)
        self.seed = seed

    def __str__(self) -> str:
        where = "in the same process" if self.seed is None else f"in a process with PYTHONHASHSEED={self.seed}"
        return (
            f"run {self.run} cannot be repeated: replayed from its own history {where}, it parts at {self.position}:\n"
            f"  - it did:       {self.history}\n"
            f"  + its replay:   {self.code}\n"
            f"Its code depends on something that no history holds, such as "
            f"{_SUSPECTS if self.seed is None else _SUSPECTS_ELSEWHERE}. Of this step nothing was recorded: mend the "
            "code, and the run goes on when its worker starts again."
        )


class Shadow(Execution):
    """Lives through a history once more, and never beyond it: no side effect runs, nothing is decided or logged."""

    @property
    def replaying(self) -> bool:
        return True


def standing(execution: Execution) -> dict[str, Any]:
    """Say where a run stands, as JSON values: what it waits for, or how it has ended."""
    return {
        "pending": [_asked(command) for command in execution.pending.values()],
        "outcome": None if execution.outcome is None else _ended(execution.outcome),
    }


def _asked(command: Command) -> list[Any]:
    child = None if command.child is None else str(command.child.id)
    facts = [command.id, command.kind, command.name, command.args]
    return [*facts, command.due_us, command.attempt, command.key, child, command.undoes]


def _ended(outcome: Outcome) -> list[Any]:
    successor = outcome.successor
    goes_on = None if successor is None else [str(successor.id), successor.input, [list(s) for s in successor.signals]]
    # Not the message of an error: no history holds it, and it may well name an address.
    return [outcome.state, outcome.result, outcome.error and outcome.error["type"], goes_on]


class ParanoidExecution(Execution):
    """An execution that does not trust its code.

    Args:
        elsewhere: has a history lived through in another process; see :meth:`continuum.determinism.twin.Twin.ask`.
    """

    shadow: type[Execution] = Shadow

    def __init__(
        self,
        definition: Any,
        run: RunIdentity,
        arguments: str,
        *,
        max_bytes: int | None = None,
        elsewhere: Callable[[dict[str, Any]], tuple[str, dict[str, Any]] | None] | None = None,
    ) -> None:
        super().__init__(definition, run, arguments, max_bytes=max_bytes)
        self._own = run
        self._elsewhere = elsewhere
        self._lived: list[Event] = []
        self._began_us = 0
        self._compared = -1

    def begin(self, now_us: int, history: Iterable[Event] = (), *, cancelled: str | None = None) -> None:
        self._lived = list(history)
        self._began_us = now_us
        super().begin(now_us, self._lived, cancelled=cancelled)

    def take(self) -> Step:
        """Return what the execution wants, once it is certain that it wants it in a replay as well.

        Raises:
            UnrepeatableError: it does not.
        """
        step = super().take()
        self._lived += step.journal
        if self._is_due():
            self._compared = len(self._lived)
            self._compare()
        return step

    def _is_due(self) -> bool:
        if self.closing or self._history or len(self._lived) == self._compared:
            return False
        if self.outcome is not None:
            return self.outcome.error is None or self.outcome.error["type"] not in _NOT_TO_REPEAT
        size = len(self._lived) + len(self.pending)
        return size <= EVERY_STEP or self._compared < 0 or len(self._lived) - self._compared >= size * GROWTH

    def _compare(self) -> None:
        here = standing(self)
        _judge(self._own, None, here, self._live_again(self.loop.watch))
        if self._elsewhere is None:
            return
        answer = self._elsewhere(request(self.definition, self._own, self.arguments, self._began_us, self._lived))
        if answer is not None:
            seed, there = answer
            _judge(self._own, seed, here, there)

    def _live_again(self, watch: Watch) -> dict[str, Any]:
        shadow = self.shadow(self.definition, self._own, self.arguments, max_bytes=self.max_bytes)
        return live_through(shadow, self._began_us, self._lived, watch)


@cache
def _suspicious(execution: type[Execution]) -> type[Execution]:
    return type(f"Paranoid{execution.__name__}", (ParanoidExecution, execution), {})


def execution_class(execution: type[Execution] = Execution) -> type[Execution]:
    """Return what runs are to be made of: the class itself, or in paranoid mode one that compares them as well."""
    return _suspicious(execution) if enabled() else execution


def live_through(shadow: Execution, began_us: int, events: list[Event], watch: Watch | None = None) -> dict[str, Any]:
    """Replay a history and say where it leads: as :func:`standing` does, or ``{"parted": [position, did, does]}``.

    ``{}`` where that cannot be told: an interruption says something about the machine, not about the code.
    """
    if watch is not None:
        shadow.loop.watch = watch
    try:
        shadow.begin(began_us, events)
        shadow.replay()
        return standing(shadow)
    except ReplayDriftError as drift:
        return {"parted": [drift.position, drift.history, drift.code]}
    except NonDeterminismError as error:
        return {"parted": ["the end of its history", "nothing that is refused", str(error)]}
    except WorkflowDeadlockError:
        logger.warning("run %s: its replay took too long to be compared with it", shadow.id)
        return {}
    finally:
        shadow.close()


def request(definition: Any, run: RunIdentity, arguments: str, began_us: int, events: list[Event]) -> dict[str, Any]:
    """Return all that another process needs to live through a history, as JSON values."""
    return {
        "workflow": [definition.name, definition.version, definition.version_hash],
        "run": {
            "id": str(run.id),
            "namespace": run.namespace,
            "version": run.version,
            "parent_run_id": None if run.parent_run_id is None else str(run.parent_run_id),
            "started_us": run.started_us,
            "seed": None if run.seed is None else str(run.seed),
            "depth": run.depth,
        },
        "arguments": arguments,
        "began_us": began_us,
        "events": events,
    }


def _judge(run: RunIdentity, seed: str | None, here: dict[str, Any], there: dict[str, Any]) -> None:
    if there and there != here:
        raise UnrepeatableError(run.id, *(there.get("parted") or _difference(here, there)), seed)


def _difference(here: dict[str, Any], there: dict[str, Any]) -> tuple[str, str, str]:
    ended, ends = here["outcome"], there["outcome"]
    if ended != ends:
        return "its end", *_apart(_told_of_end(ended, here), _told_of_end(ends, there))
    asked, asks = ({command[0]: command for command in each["pending"]} for each in (here, there))
    for id_ in (*asked, *asks):
        if asked.get(id_) != asks.get(id_):
            return f"command {id_}", *_apart(_told(asked.get(id_)), _told(asks.get(id_)))
    return "the order of what it waits for", *_apart(", ".join(asked), ", ".join(asks))


def _told(command: list[Any] | None) -> str:
    if command is None:
        return "no such command"
    id_, kind, name, args, due_us, attempt, key, child, undoes = command
    told = f"{id_} {kind}{f' {name}' if name else ''} with arguments {args}"
    more = {"due": due_us, "key": key, "child": child, "undoes": undoes, "attempt": attempt if attempt > 1 else None}
    return told + "".join(f", {what} {value}" for what, value in more.items() if value is not None)


def _told_of_end(outcome: list[Any] | None, whole: dict[str, Any]) -> str:
    if outcome is None:
        waits = "; ".join(_told(command) for command in whole["pending"][:3])
        return f"it has not ended, and waits for {waits or 'nothing'}"
    state, result, error, goes_on = outcome
    if goes_on is not None:
        return f"it goes on as {goes_on[0]} with arguments {goes_on[1]}"
    return f"it has ended {state}, " + (f"with {error}" if error else f"with the result {result or 'null'}")


def _apart(one: str, other: str, most: int = 400) -> tuple[str, str]:
    """Cut two texts so that what tells them apart is seen."""
    pairs = zip(one, other, strict=False)
    same = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    start = same - most // 2 if same > most // 2 and max(len(one), len(other)) > most else 0
    return _cut(one, start, most), _cut(other, start, most)


def _cut(text: str, start: int, most: int) -> str:
    return f"{'…' if start else ''}{text[start : start + most]}{'…' if len(text) > start + most else ''}"
