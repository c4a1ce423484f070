"""The protocol by which workers share runs, as a machine of few states: claim, fence, commit, release, wake, take-over.

What is modelled
----------------
* The database: runs (state, owner, token, due time, history), inboxes, the workers' rows. A statement is one step, but
  for the journal's, which is two: it looks (``lease`` and ``lost`` in ``journal.sql``), then it writes. In between may
  happen whatever its locks allow.
* A worker's process: its live runs, the journal's one writer, the one connection for claims and mail. It may be killed,
  stopped and continued, told to leave, and lose the lock by which others see that it lives. Its connections break
  before, during and after a statement; what the server was at then ends later, or never ("left behind").
* Time: the lease of a stopped process runs out, timers come due, in any order with all else. Nor need a process that
  runs be seen to: without its lock a worker looks dead while it is not.
* A run's code waits for so many messages, then perhaps for a timer, then ends; a request to cancel ends it at once. The
  end of a child is a message to its parent, written in the same commit.
* Hints: in set-ups with ``hints`` only, where a worker looks because of a hint or of the poll. Elsewhere it may look at
  any time, which is what the poll comes to, and hints add nothing.

Not modelled: activities, children's starts, recoveries, parking, limits of batches, the order between several senders.
Reading mail and handing it over is one step; a worker's claims and reads take turns, as they share a connection. Faults
are limited by the set-up: so many of each kind, at any moment.

Tokens are drawn from a sequence and compared for nothing but being equal, so a state keeps them as the lowest numbers
of the same order. ``grant`` is no part of the protocol: it counts changes of hands, by which the search knows who is
entitled to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

CANCEL = "x"
REPORT = "c"
TIMER = "t"
END = "end"


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol's precautions, each of which can be left out.

    Attributes:
        token_compared: the journal's statement refuses a run whose token is not that of the claim.
        owner_compared: it refuses a run of another owner.
        token_compared_again: so does the update of a row that had changed after the statement had looked.
        lease_checked: it refuses a dead worker.
        lease_locked: it keeps the worker from being declared dead until it ends.
        claim_draws_token: a claim gives a run a new token.
        freeing_draws_token: so does taking it from a dead owner.
        dead_before_freed: runs are taken only from owners whose row says that they are dead.
        stranded_freed: any worker frees the runs of the dead, not only the one that declared them so.
        mail_by_predicate: an unread message makes a run claimable; without: a flag, set by senders who see no owner.
        consumed: messages leave the inbox "in" the commit that records them, or "before" or "after" it.
        seen_remembered: a message that is read again before its commit is known.
        landed_asked: after a broken commit the worker looks for its records before it writes again.
        landed_assumed: instead of asking, it takes a broken commit for done.
        one_statement: history and row are written together; without: the row first.
        strangers_looked_for: when the worker looks for runs that are its own although it does not know of them:
            "always", "once" (after the claims' connection broke) or "never".
        polled: workers also look without a hint. If so, hints are not counted on.
    """

    token_compared: bool = True
    owner_compared: bool = True
    token_compared_again: bool = True
    lease_checked: bool = True
    lease_locked: bool = True
    claim_draws_token: bool = True
    freeing_draws_token: bool = True
    dead_before_freed: bool = True
    stranded_freed: bool = True
    mail_by_predicate: bool = True
    consumed: str = "in"
    seen_remembered: bool = True
    landed_asked: bool = True
    landed_assumed: bool = False
    one_statement: bool = True
    strangers_looked_for: str = "always"
    polled: bool = True


@dataclass(frozen=True, slots=True)
class Setup:
    """Sizes: what there is to do, and how much may go wrong.

    Attributes:
        needs: for each run, how many messages its code waits for.
        timers: for each run, whether it then waits for a timer.
        parent: the number of the run that the last run reports to, or None.
        sends: what a client sends, one after the other: (run, message).
        workers: number of processes.
        kills: how many processes are killed.
        stops: how often one is stopped, and perhaps continued.
        unlocks: how often one loses the lock that shows that it lives, and takes it again.
        drains: how many are told to leave.
        cuts: how often the connection of a journal breaks.
        claim_cuts: how often a connection for claims breaks.
        hints: hints are modelled, and may be late.
        losses: each may also get lost.
    """

    needs: tuple[int, ...] = (1,)
    timers: tuple[bool, ...] = (False,)
    parent: int | None = None
    sends: tuple[tuple[int, str], ...] = ((0, "a"),)
    workers: int = 2
    kills: int = 0
    stops: int = 0
    unlocks: int = 0
    drains: int = 0
    cuts: int = 0
    claim_cuts: int = 0
    hints: bool = False
    losses: bool = True
    rules: Rules = Rules()


class Run(NamedTuple):
    """A row of ``continuum_runs``, with its history and its unread messages."""

    state: str  # pending, running, suspended, ended
    owner: int | None
    token: int
    grant: int
    due: str  # "now", "timer" (when its instant has come) or "" (not set)
    history: tuple[str, ...]
    unread: tuple[str, ...]
    instant: bool  # the timer's time has come
    flag: bool  # only without mail_by_predicate


class Live(NamedTuple):
    """A run in memory. ``history`` is all that its code has been through, ``open`` what no commit has taken along."""

    token: int
    grant: int
    history: tuple[str, ...]
    seen: tuple[str, ...]
    open: Entry | None
    leaving: bool


class Entry(NamedTuple):
    """What a commit is to record for one run. ``update`` is "", "end" or "release", with the due time to set."""

    run: int
    token: int
    grant: int
    seq: int
    events: tuple[str, ...]
    consumed: tuple[str, ...]
    update: str
    due: str


class Statement(NamedTuple):
    """A commit. ``stage``: sent, looked (at what is lost), answered; or broken (nobody waits for the answer)."""

    entries: tuple[Entry, ...]
    stage: str
    lost: tuple[int, ...] = ()
    broken: bool = False
    conflict: bool = False


class Worker(NamedTuple):
    """A process and its row. ``number`` is the row's id: a process that comes back has another."""

    number: int
    dead: bool
    suspect: bool  # its lock is gone, or its lease has run out
    process: str  # up, draining, stopped, gone
    lives: tuple[Live | None, ...]
    writer: Statement | None
    claim: tuple[int, int, int] | str | None  # a claim whose answer is on its way; "cut" when it never comes
    todo: tuple[int, ...] = ()  # only without stranded_freed: whose runs it is to free
    wants: bool = True  # only with hints: to look for runs and mail


class State(NamedTuple):
    runs: tuple[Run, ...]
    workers: tuple[Worker, ...]
    behind: tuple[tuple[int, Statement | None], ...]  # left behind on the server: of whom, what; None is a claim
    sent: int
    faults: tuple[int, ...]
    hints: tuple[int, ...]  # on their way, by worker

    def __str__(self) -> str:
        lines = []
        for number, run in enumerate(self.runs):
            owner = "nobody's" if run.owner is None else f"w{run.owner}'s"
            due = f", due: {run.due}" if run.due else ""
            lines.append(f"  r{number}: {run.state}, {owner}{due}, history {[*run.history]}, unread {[*run.unread]}")
        for worker in self.workers:
            lives = {f"r{number}": [*live.history] for number, live in enumerate(worker.lives) if live is not None}
            row = "dead" if worker.dead else "suspect" if worker.suspect else "alive"
            lines.append(f"  w{worker.number}: process {worker.process}, row {row}, live runs {lives}")
        return "\n".join(lines)


KILL, STOP, UNLOCK, DRAIN, CUT, CUT_CLAIM = range(6)


def put(state: State, index: int, /, **changes: object) -> State:
    workers = state.workers
    return state._replace(
        workers=(*workers[:index], workers[index]._replace(**changes), *workers[index + 1 :])  # type: ignore[arg-type]
    )


def put_run(state: State, index: int, /, **changes: object) -> State:
    runs = state.runs
    return state._replace(runs=(*runs[:index], runs[index]._replace(**changes), *runs[index + 1 :]))  # type: ignore[arg-type]


def put_live(state: State, index: int, run: int, live: Live | None, /, **changes: object) -> State:
    lives = state.workers[index].lives
    return put(state, index, lives=(*lives[:run], live, *lives[run + 1 :]), **changes)


def alive(state: State, number: int) -> bool:
    return any(worker.number == number and not worker.dead for worker in state.workers)


# -- a run's code ---------------------------------------------------------------------------------------------------


def messages(history: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(event for event in history if event not in (TIMER, END))


def waits_for_timer(setup: Setup, run: int, history: tuple[str, ...]) -> bool:
    return (
        setup.timers[run]
        and TIMER not in history
        and CANCEL not in history
        and END not in history
        and len(messages(history)) >= setup.needs[run]
    )


def over(setup: Setup, run: int, history: tuple[str, ...]) -> bool:
    if CANCEL in history:
        return True
    return len(messages(history)) >= setup.needs[run] and (not setup.timers[run] or TIMER in history)


# -- canonical form -------------------------------------------------------------------------------------------------


def fresh(state: State, run: int) -> int:
    """Return a token nobody has had: higher than all that are known of."""
    return max(_tokens(state, run)) + 1


def _tokens(state: State, run: int) -> set[int]:
    row = state.runs[run]
    found = {row.token, row.grant}
    statements = [statement for _, statement in state.behind if statement is not None]
    for worker in state.workers:
        live = worker.lives[run]
        if live is not None:
            found.update((live.token, live.grant))
        if isinstance(worker.claim, tuple) and worker.claim[0] == run:
            found.update(worker.claim[1:])
        if worker.writer is not None:
            statements.append(worker.writer)
    for statement in statements:
        for entry in statement.entries:
            if entry.run == run:
                found.update((entry.token, entry.grant))
    return found


def canonical(state: State) -> State:
    """Give tokens the lowest numbers that keep their order: states that differ in nothing else are the same."""
    for run, row in enumerate(state.runs):
        if not row.grant:
            continue  # the highest there is
        found = _tokens(state, run)
        if max(found) >= len(found):
            state = _renumbered(state, run, {token: rank for rank, token in enumerate(sorted(found))})
    return state


def _renumbered(state: State, run: int, ranks: dict[int, int]) -> State:
    def entry(old: Entry | None) -> Entry | None:
        if old is None or old.run != run:
            return old
        return old._replace(token=ranks[old.token], grant=ranks[old.grant])

    def statement(old: Statement | None) -> Statement | None:
        return None if old is None else old._replace(entries=tuple(map(entry, old.entries)))  # type: ignore[arg-type]

    def worker(old: Worker) -> Worker:
        live, claim = old.lives[run], old.claim
        if live is not None:
            live = live._replace(token=ranks[live.token], grant=ranks[live.grant], open=entry(live.open))
        if isinstance(claim, tuple) and claim[0] == run:
            claim = (run, ranks[claim[1]], ranks[claim[2]])
        lives = (*old.lives[:run], live, *old.lives[run + 1 :])
        return old._replace(lives=lives, claim=claim, writer=statement(old.writer))

    row = state.runs[run]
    return put_run(state, run, token=ranks[row.token], grant=ranks[row.grant])._replace(
        workers=tuple(map(worker, state.workers)),
        behind=tuple(sorted(((owner, statement(old)) for owner, old in state.behind), key=repr)),
    )
