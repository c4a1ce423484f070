"""Breadth-first search through all states of a model, and what it proves or finds.

Safety: no state, and no step, is wrong. Liveness: from every state the goal can be reached by steps that may be counted
on, whatever went wrong before. Shown by walking back from the goals over such steps: a state that is not met on the way
is one from which nothing helps any more. All that is left to assume is fairness: what can happen for ever happens.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Result", "Step", "explore"]


class Step(NamedTuple):
    """One thing that may happen.

    Attributes:
        label: what, for people.
        state: what it leads to, in canonical form.
        helps: whether it may be counted on to happen; faults, and what only ends them, may not.
        wrong: what is wrong about this having been possible, or "".
    """

    label: str
    state: Any
    helps: bool = True
    wrong: str = ""


@dataclass(slots=True)
class Result:
    """What a search has found.

    Attributes:
        states: number of states.
        steps: number of steps between them.
        goals: number of states in which all is done.
        wrong: what is violated, or "".
        trace: the labels of the shortest way there.
        last: the state at its end.
        labels: all that has happened anywhere.
    """

    states: int = 0
    steps: int = 0
    goals: int = 0
    wrong: str = ""
    trace: list[str] = field(default_factory=list)
    last: Any = None
    labels: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        if not self.wrong:
            return f"{self.states} states, {self.steps} steps, {self.goals} goals: nothing wrong"
        steps = "\n".join(f"{number:4}. {label}" for number, label in enumerate(self.trace, 1))
        return f"{self.wrong}\n{steps}\nwhich leaves\n{self.last}"


def explore(
    initial: Hashable,
    steps: Callable[[Any], Iterable[Step]],
    *,
    wrong: Callable[[Any], str],
    goal: Callable[[Any], bool],
    most: int = 2_000_000,
) -> Result:
    """Visit every state that can be reached from ``initial``, nearest first, until something is wrong.

    Args:
        initial: the first state.
        steps: what may happen in a state.
        wrong: what is wrong with a state, or "".
        goal: whether all that was to be done is done in a state.
        most: states after which the search gives up with an error: a model that grows must not go unnoticed.
    """
    numbers: dict[Any, int] = {initial: 0}
    order: list[Any] = [initial]
    came_from = array("l", [-1])
    came_by: list[str] = [""]
    goals: list[int] = []
    helping_from, helping_to = array("l"), array("l")
    result = Result()

    def found(what: str, number: int, *more: str, last: Any = None) -> Result:
        result.states = len(order)
        result.wrong, result.last = what, order[number] if last is None else last
        result.trace = [*reversed(list(_way(number, came_from, came_by))), *more]
        return result

    if what := wrong(initial):
        return found(what, 0)
    here = 0
    while here < len(order):
        state = order[here]
        if goal(state):
            goals.append(here)
        for label, after, helps, bad in steps(state):
            result.steps += 1
            result.labels.add(label)
            if bad:
                return found(bad, here, label, last=after)
            there = numbers.get(after)
            if there is None:
                there = numbers[after] = len(order)
                order.append(after)
                came_from.append(here)
                came_by.append(label)
                if what := wrong(after):
                    return found(what, there)
            if helps and there != here:
                helping_from.append(here)
                helping_to.append(there)
        here += 1
        if len(order) > most:
            raise RuntimeError(f"more than {most} states")
    result.states, result.goals = len(order), len(goals)
    hopeless = _first_without_hope(len(order), goals, helping_from, helping_to)
    if hopeless is not None:
        return found("nothing that may be counted on leads to the goal any more", hopeless)
    return result


def _way(number: int, came_from: array[int], came_by: list[str]) -> Iterator[str]:
    while number > 0:
        yield came_by[number]
        number = came_from[number]


def _first_without_hope(states: int, goals: list[int], froms: array[int], tos: array[int]) -> int | None:
    """Return the nearest state from which no goal can be reached, or None."""
    before: list[list[int] | None] = [None] * states
    for here, there in zip(froms, tos, strict=True):
        known = before[there]
        if known is None:
            before[there] = [here]
        else:
            known.append(here)
    hope = bytearray(states)
    todo = list(goals)
    for number in todo:
        hope[number] = 1
    while todo:
        for number in before[todo.pop()] or ():
            if not hope[number]:
                hope[number] = 1
                todo.append(number)
    missing = hope.find(0)
    return None if missing < 0 else missing
