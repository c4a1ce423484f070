"""Which worker takes which run while several versions of the code are at work: a model of its own.

Who may write to a run is the other model's business (``states``); here a claim is one step, and so is a commit. What
is modelled is what a claim looks at: the version that has the run, those it was tried with, and the versions that live
workers have; parking, adopting, and parking for want of code. A history fits some versions, and fewer the more versions
have added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.protocol.search import Step

__all__ = ["Rules", "Run", "Setup", "State", "Worker", "finished", "initial", "steps", "wrong"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Precautions of the protocol, each of which can be left out.

    Attributes:
        tries_remembered: a parked run knows the versions it was tried with.
        own_code_first: a run is left to workers that have its very code, for a while.
        parked_claimed: live workers look for parked runs, not only those that have just come.
        untried_claimed: also for runs that were parked without ever having been tried.
        dead_forgotten: a worker that is gone does not count as one that has the code.
        pinned_claims: with "pin" a claim looks at the hash.
    """

    tries_remembered: bool = True
    own_code_first: bool = True
    parked_claimed: bool = True
    untried_claimed: bool = True
    dead_forgotten: bool = True
    pinned_claims: bool = True


@dataclass(frozen=True, slots=True)
class Setup:
    """What there is.

    Attributes:
        runs: for each run, the version it is started with.
        fits: by version, the versions that a history fits once this one has added to it.
        deploys: what happens to workers, in order: ``"+a"`` one comes with version a, ``"-0"`` the first one leaves.
        kills: how many workers die.
        pin: runs are left to workers with their very code.
        releases: how often a run is given back by its worker.
    """

    runs: tuple[str, ...] = ("a",)
    fits: tuple[tuple[str, str], ...] = (("a", "a"),)
    deploys: tuple[str, ...] = ("+a",)
    kills: int = 0
    pin: bool = False
    releases: int = 1
    rules: Rules = Rules()


class Run(NamedTuple):
    state: str  # waiting, running, stuck, ended
    version: str
    tried: tuple[str, ...]
    fits: str
    owner: int | None
    patience: bool  # it has waited for long enough
    drifts: tuple[str, ...]  # the versions that drifted on it since it last went on
    adoptions: int  # by versions for which it had not waited for long


class Worker(NamedTuple):
    version: str
    up: bool


class State(NamedTuple):
    runs: tuple[Run, ...]
    workers: tuple[Worker, ...]
    deployed: int
    kills: int
    releases: int


def initial(setup: Setup) -> State:
    """Every run has just been started, and there is no worker yet."""
    everything = "".join(sorted({version for version, _ in setup.fits}))
    runs = tuple(Run("waiting", version, (), everything, None, False, (), 0) for version in setup.runs)
    return State(runs, (), 0, setup.kills, setup.releases)


def finished(setup: Setup, state: State) -> bool:
    """All deploys are made, and every run has ended."""
    return state.deployed == len(setup.deploys) and all(run.state == "ended" for run in state.runs)


def wrong(setup: Setup, state: State) -> str:
    """Say what is wrong with a state, or ""."""
    for number, run in enumerate(state.runs):
        if len(set(run.drifts)) < len(run.drifts):
            return f"r{number} is tried again with a version that it is parked for"
        if setup.pin and run.state in ("running", "ended") and run.version != setup.runs[number]:
            return f"r{number} is run by another version than its own"
        if run.adoptions > len({worker.version for worker in state.workers}) + setup.kills:
            return f"r{number} goes to and fro between versions"
    return ""


def steps(setup: Setup, state: State) -> Iterator[Step]:
    """All that may happen next."""
    if state.deployed < len(setup.deploys):
        yield _deploy(setup, state)
    for number, run in enumerate(state.runs):
        if run.state == "waiting" and not run.patience:
            yield Step(f"clock: r{number} has waited for long", _put(state, number, patience=True))
        if run.state in ("waiting", "stuck"):
            for index, worker in enumerate(state.workers):
                if worker.up and _claims(setup, state, run, worker):
                    yield _taken_up(setup, state, number, index)
        if run.state == "waiting" and not _somebody_has(setup, state, run):
            yield Step(f"maintenance: nobody has the code of r{number}", _put(state, number, state="stuck"))
        if run.state == "running":
            yield Step(f"w{run.owner}: r{number} ends", _put(state, number, state="ended", owner=None))
            if state.releases:
                less = state._replace(releases=state.releases - 1)
                yield Step(f"w{run.owner}: gives r{number} back", _freed(less, number), False)
    for index, worker in enumerate(state.workers):
        if worker.up and state.kills:
            yield Step(f"w{index}: is killed", _gone(state._replace(kills=state.kills - 1), index), False)


def _deploy(setup: Setup, state: State) -> Step:
    what = setup.deploys[state.deployed]
    after = state._replace(deployed=state.deployed + 1)
    if what[0] == "+":
        return Step(
            f"deploy: one comes with {what[1:]}", after._replace(workers=(*after.workers, Worker(what[1:], True)))
        )
    return Step(f"deploy: w{what[1:]} leaves", _gone(after, int(what[1:])))


def _claims(setup: Setup, state: State, run: Run, worker: Worker) -> bool:
    """``claim_due`` and ``claim_parked``."""
    rules = setup.rules
    if setup.pin and rules.pinned_claims and worker.version != run.version:
        return False
    if run.state == "stuck":
        if not rules.parked_claimed or (not run.tried and not rules.untried_claimed):
            return False
        return worker.version not in run.tried
    if worker.version == run.version or run.patience or not rules.own_code_first:
        return True
    others = {other.version for other in state.workers if other.up or not rules.dead_forgotten}
    return run.version not in others


def _taken_up(setup: Setup, state: State, number: int, index: int) -> Step:
    run, version = state.runs[number], state.workers[index].version
    if version not in run.fits:
        tried = tuple(sorted({*run.tried, version})) if setup.rules.tries_remembered else run.tried
        after = _put(
            state, number, state="stuck", tried=tried, drifts=tuple(sorted((*run.drifts, version))), patience=False
        )
        return Step(f"w{index}: r{number} drifts on {version}", after)
    fits = "".join(sorted(set(run.fits) & set(dict(setup.fits)[version])))
    after = _put(state, number, state="running", owner=index, fits=fits, patience=False, drifts=())
    if version == run.version:
        return Step(f"w{index}: takes up r{number}", after)
    after = _put(after, number, version=version, tried=(), adoptions=run.adoptions + (not run.patience))
    return Step(f"w{index}: r{number} is adopted by {version}", after)


def _somebody_has(setup: Setup, state: State, run: Run) -> bool:
    return any(worker.up and (not setup.pin or worker.version == run.version) for worker in state.workers)


def _gone(state: State, index: int) -> State:
    workers = (*state.workers[:index], state.workers[index]._replace(up=False), *state.workers[index + 1 :])
    state = state._replace(workers=workers)
    for number, run in enumerate(state.runs):
        if run.owner == index:
            state = _freed(state, number)
    return state


def _freed(state: State, number: int) -> State:
    return _put(state, number, state="waiting", owner=None, patience=False)


def _put(state: State, number: int, /, **changes: object) -> State:
    run = state.runs[number]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(runs=(*state.runs[:number], run, *state.runs[number + 1 :]))
