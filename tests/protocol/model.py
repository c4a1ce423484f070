"""The protocol by which workers share runs, as a machine of few states: claim, fence, commit, release, wake, take-over.

What is modelled, and where it is in the code

* The database: runs (state, owner, token, due time, history), inboxes, the workers' rows. A statement is one step, but for
  the journal's (``journal.sql``), which is two: it looks (``lease`` and ``lost``), then it writes. In between anything may
  happen that its locks allow.
* A worker's process: its live runs, the journal's one writer, the one connection for claims and mail. It may be killed,
  stopped and continued, lose the lock by which others see that it lives, drain. Its connections break before, during and
  after a statement; what the server was at then ends later, or never ("left behind").
* Time: leases run out once a process is stopped, timers come due, in any order with all else. That a running process renews
  in time is not assumed either: losing its lock makes a worker look dead while it is not.
* A run's code waits for so many messages, then perhaps for a timer, then ends; a request to cancel ends it at once. A child's
  end is a message to its parent, written in the commit that ends the child.
* Hints: only in set-ups with ``hints``, where a worker looks because of a hint or of the poll. Elsewhere it may look at any time,
  which is what the poll comes to; hints then add nothing.

Not modelled: activities, recoveries, parking, limits of batches, partitions, the order of messages of several senders. A read
of the inbox and the delivery of what it has found are one step, as are claims and reads of one worker in turn (they share a
connection). Faults are limited by the set-up: so many of each kind, at any moment.

Tokens are drawn from a sequence and only ever compared for being equal, so that a state keeps them as small numbers in the order
of their first appearance. ``grant`` is no part of the protocol: it counts changes of hands and tells the search who is
really entitled to write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.protocol.search import Step

__all__ = ["Rules", "Setup", "State", "finished", "initial", "steps", "wrong"]

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
        lease_held: it refuses a dead worker, and keeps the worker from being declared dead until it ends.
        claim_draws_token: a claim gives a run a new token.
        freeing_draws_token: so does taking it from a dead owner.
        dead_before_freed: runs are taken only from owners whose row says that they are dead.
        stranded_freed: any worker frees the runs of the dead, not only the one that declared them so.
        mail_by_predicate: an unread message makes a run claimable; without: a flag that senders set if they see no owner.
        consumed: messages leave the inbox "in" the commit that records them, or "before" or "after" it.
        seen_remembered: a message that is read again before its commit is known.
        landed_asked: after a broken commit the worker looks for its records before it writes again.
        landed_assumed: instead of asking, it takes a broken commit for done.
        one_statement: history and row are written together; without: the row first.
        strangers_looked_for: "always", "once" (after the claims' connection broke) or "never": runs that are this worker's
            although it does not know of them.
        polled: workers also look without a hint.
    """

    token_compared: bool = True
    owner_compared: bool = True
    token_compared_again: bool = True
    lease_held: bool = True
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
        hints: hints are modelled; each may be late or get lost.
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
    """A run in the memory of a process. ``history`` is all its code has been through, ``open`` what of it no commit has yet."""

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
    """A statement of a journal. ``stage``: sent, looked (at what is lost), answered; broken (nobody waits for the answer)."""

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
        rows = [*(f"  {run}" for run in self.runs), *(f"  {worker}" for worker in self.workers)]
        return "\n".join([*rows, f"  left behind: {self.behind}", f"  sent: {self.sent}, hints: {self.hints}"])


KILL, STOP, UNLOCK, DRAIN, CUT, CUT_CLAIM = range(6)


def initial(setup: Setup) -> State:
    """Every run has just been started, every worker has just registered."""
    nobody = (None,) * len(setup.needs)
    return State(
        tuple(Run("pending", None, 0, 0, "now", (), (), False, False) for _ in setup.needs),
        tuple(Worker(number, False, False, "up", nobody, None, None) for number in range(setup.workers)),
        (),
        0,
        (setup.kills, setup.stops, setup.unlocks, setup.drains, setup.cuts, setup.claim_cuts),
        (),
    )


# -- a run's code ---------------------------------------------------------------------------------------------------


def _messages(history: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(event for event in history if event not in (TIMER, END))


def _waits_for_timer(setup: Setup, run: int, history: tuple[str, ...]) -> bool:
    return (
        setup.timers[run]
        and TIMER not in history
        and CANCEL not in history
        and END not in history
        and len(_messages(history)) >= setup.needs[run]
    )


def _over(setup: Setup, run: int, history: tuple[str, ...]) -> bool:
    if CANCEL in history:
        return True
    return len(_messages(history)) >= setup.needs[run] and (not setup.timers[run] or TIMER in history)


# -- what is wrong with a state -------------------------------------------------------------------------------------


def finished(setup: Setup, state: State) -> bool:
    """Everything was sent, every run has ended."""
    return state.sent == len(setup.sends) and all(run.state == "ended" for run in state.runs)


def wrong(setup: Setup, state: State) -> str:
    """Say which invariant a state violates, or ""."""
    for number, run in enumerate(state.runs):
        ends = run.history.count(END)
        if ends > 1 or (ends and run.history[-1] != END):
            return "something follows the end of a run"
        if (run.state == "ended") != (ends == 1):
            return "a run's row and its history disagree on whether it has ended"
        recorded = _messages(run.history)
        if len(set(recorded)) < len(recorded):
            return "a message was consumed twice"
        if run.state != "ended":
            sent = [message for to, message in setup.sends[: state.sent] if to == number]
            if setup.parent == number and state.runs[-1].state == "ended":
                sent.append(REPORT)
            if any(message not in recorded and message not in run.unread for message in sent):
                return "a message is lost"
        in_order = [message for to, message in setup.sends if to == number and message in recorded]
        if in_order != [message for message in recorded if message != REPORT]:
            return "messages were consumed in another order than they were sent"
    return ""


# -- steps ----------------------------------------------------------------------------------------------------------


def steps(setup: Setup, state: State) -> Iterator[Step]:
    """All that may happen next."""
    for step in _all_steps(setup, state):
        yield step._replace(state=_canonical(step.state))


def _all_steps(setup: Setup, state: State) -> Iterator[Step]:
    yield from _outside(setup, state)
    for index, (number, statement) in enumerate(state.behind):
        rest = state._replace(behind=state.behind[:index] + state.behind[index + 1 :])
        yield from _left_behind(setup, rest, number, statement)
    for index, worker in enumerate(state.workers):
        yield from _of_others(setup, state, index, worker)
        if worker.writer is not None and worker.writer.stage in ("sent", "looked"):
            for label, after, statement, bad in _serve(setup, state, worker.number, worker.writer):
                yield Step(f"server: w{worker.number}'s {label}", _put(after, index, writer=statement), True, bad)
        if worker.process in ("up", "draining"):
            yield from _journal(setup, state, index, worker)
            yield from _intake(setup, state, index, worker)
            yield from _runs(setup, state, index, worker)
            yield from _lease(setup, state, index, worker)
        yield from _faults(setup, state, index, worker)


def _put(state: State, index: int, /, **changes: object) -> State:
    workers = state.workers
    return state._replace(
        workers=(*workers[:index], workers[index]._replace(**changes), *workers[index + 1 :])  # type: ignore[arg-type]
    )


def _put_run(state: State, index: int, /, **changes: object) -> State:
    runs = state.runs
    return state._replace(runs=(*runs[:index], runs[index]._replace(**changes), *runs[index + 1 :]))  # type: ignore[arg-type]


def _put_live(state: State, index: int, run: int, live: Live | None, /, **changes: object) -> State:
    lives = state.workers[index].lives
    return _put(state, index, lives=(*lives[:run], live, *lives[run + 1 :]), **changes)


def _alive(state: State, number: int) -> bool:
    return any(worker.number == number and not worker.dead for worker in state.workers)


def _hint(setup: Setup, state: State, to: int | None) -> State:
    """Send a hint to a run's owner, or to all."""
    if not setup.hints:
        return state
    to_whom = {worker.number for worker in state.workers} if to is None else {to}
    return state._replace(hints=tuple(sorted(to_whom.union(state.hints))))


def _send(setup: Setup, state: State, run: int, message: str) -> State:
    row = state.runs[run]
    after = _put_run(state, run, unread=(*row.unread, message), flag=row.flag or row.owner is None)
    return _hint(setup, after, row.owner)


def _outside(setup: Setup, state: State) -> Iterator[Step]:
    """The client and the clock."""
    if state.sent < len(setup.sends):
        run, message = setup.sends[state.sent]
        after = state._replace(sent=state.sent + 1)
        if state.runs[run].state == "ended":
            yield Step(f"client: r{run} has ended, {message!r} is not sent", after)
        else:
            yield Step(f"client: sends {message!r} to r{run}", _send(setup, after, run, message))
    for number, run in enumerate(state.runs):
        if not run.instant and _waits_for_timer(setup, number, run.history):
            yield Step(f"clock: the time of r{number}'s timer comes", _put_run(state, number, instant=True))
    for number in state.hints:
        rest = state._replace(hints=tuple(other for other in state.hints if other != number))
        yield Step(f"hint: one for w{number} is lost", rest, False)
        for index, worker in enumerate(state.workers):
            if worker.number == number and worker.process in ("up", "draining") and not worker.wants:
                yield Step(f"hint: w{number} hears one", _put(rest, index, wants=True), False)


# -- the journal's statement ----------------------------------------------------------------------------------------


def _serve(
    setup: Setup, state: State, number: int, statement: Statement
) -> Iterator[tuple[str, State, Statement, str]]:
    """The server goes on with a statement of worker ``number``."""
    rules = setup.rules
    if statement.stage == "sent":
        lost = []
        for entry in statement.entries:
            run = state.runs[entry.run]
            held = not rules.lease_held or _alive(state, number)
            held = held and (not rules.token_compared or run.token == entry.token)
            if not held or (rules.owner_compared and run.owner != number):
                lost.append(entry.run)
        what = f"statement looks: {'lost are ' + str(lost) if lost else 'nothing is lost'}"
        yield what, state, statement._replace(stage="looked", lost=tuple(lost)), ""
        return
    answered = statement._replace(stage="answered")
    if statement.lost:
        yield "statement ends: nothing is written", state, answered, ""
        return
    if any(entry.events and len(state.runs[entry.run].history) > entry.seq for entry in statement.entries):
        yield "statement ends: such records are there already", state, answered._replace(conflict=True), ""
        return
    bad = ""
    described = []
    for entry in statement.entries:
        described.append(f"r{entry.run} {list(entry.events)}{' ' + entry.update if entry.update else ''}")
        state, trouble = _write(setup, state, number, entry)
        bad = bad or trouble
    yield f"statement writes {', '.join(described)}", state, answered, bad


def _write(setup: Setup, state: State, number: int, entry: Entry) -> tuple[State, str]:
    rules = setup.rules
    run = state.runs[entry.run]
    changes: dict[str, object] = {}
    if entry.events:
        if entry.seq > len(run.history):
            return state, "a gap in a history"
        changes["history"] = run.history + entry.events
        if run.history and run.history[-1] == END:
            return state, "something follows the end of a run"
    if rules.consumed == "in" and entry.consumed:
        changes["unread"] = tuple(message for message in run.unread if message not in entry.consumed)
    # What the update finds on the row as it is by now.
    owned = not rules.owner_compared or run.owner == number
    if rules.token_compared and rules.token_compared_again:
        owned = owned and run.token == entry.token
    if entry.update and owned:
        changes["owner"] = None
        changes["due"] = entry.due
        changes["state"] = "ended" if entry.update == END else "suspended"
    if entry.events or (entry.update and owned):
        if run.grant != entry.grant:
            return state, f"w{number} writes to r{entry.run}, which has changed hands since it was claimed"
    state = _put_run(state, entry.run, **changes)
    if entry.update == END and owned and setup.parent is not None and entry.run == len(state.runs) - 1:
        if state.runs[setup.parent].state != "ended":
            state = _send(setup, state, setup.parent, REPORT)
    elif entry.update and owned:
        state = _hint(setup, state, None)
    return state, ""


def _left_behind(setup: Setup, state: State, number: int, statement: Statement | None) -> Iterator[Step]:
    """``state`` is without the statement."""
    if statement is None:
        for run in _claimable(setup, state):
            if _alive(state, number):
                after, _, _ = _take(setup, state, number, run)
                yield Step(f"server: a claim left behind by w{number} takes r{run}", after)
        yield Step(f"server: a claim left behind by w{number} ends", state)
        return
    for label, after, result, bad in _serve(setup, state, number, statement):
        if result.stage == "looked":
            after = after._replace(behind=tuple(sorted((*after.behind, (number, result)), key=repr)))
        yield Step(f"server: w{number}'s left-behind {label}", after, True, bad)
    yield Step(f"server: w{number}'s left-behind statement is aborted", state)


# -- the journal's writer -------------------------------------------------------------------------------------------


def _journal(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    rules, me, writer = setup.rules, f"w{worker.number}", worker.writer
    if writer is None:
        entries = tuple(live.open for live in worker.lives if live is not None and live.open is not None)
        if entries:
            if not rules.one_statement:
                entries = _row_first(entries)
            lives = tuple(
                None if live is None else live._replace(open=_later(rules, live.open)) for live in worker.lives
            )
            yield Step(f"{me}: sends a commit", _put(state, index, lives=lives, writer=Statement(entries, "sent")))
    elif writer.stage == "broken":
        if rules.landed_assumed:
            after = _acknowledge(setup, state, index, writer.entries)
            yield Step(f"{me}: takes the commit for done", _put(after, index, writer=None))
            return
        landed = [entry for entry in writer.entries if rules.landed_asked and _landed(state, entry)]
        rest = tuple(entry for entry in writer.entries if entry not in landed)
        after = _acknowledge(setup, state, index, landed)
        again = Statement(rest, "sent", broken=writer.broken) if rest else None
        yield Step(f"{me}: finds {len(landed)} of the commit's runs written", _put(after, index, writer=again))
    elif writer.stage == "answered":
        if writer.conflict:
            after = _put(state, index, writer=Statement(writer.entries, "broken", broken=False))
            bad = "" if writer.broken else f"w{worker.number}'s record is refused: its place is taken"
            yield Step(f"{me}: learns that the records are there already", after, True, bad)
            return
        if not writer.lost:
            after = _acknowledge(setup, state, index, writer.entries)
            yield Step(f"{me}: learns that the commit is durable", _put(after, index, writer=None))
            return
        after = state
        for entry in writer.entries:
            live = worker.lives[entry.run]
            if entry.run in writer.lost and live is not None and live.grant == entry.grant:
                after = _put_live(after, index, entry.run, None)
        rest = tuple(entry for entry in writer.entries if entry.run not in writer.lost)
        again = Statement(rest, "sent", broken=writer.broken) if rest else None
        yield Step(f"{me}: learns that {list(writer.lost)} is in other hands", _put(after, index, writer=again))


def _landed(state: State, entry: Entry) -> bool:
    run = state.runs[entry.run]
    return bool(entry.events) and run.token == entry.token and len(run.history) >= entry.seq + len(entry.events)


def _row_first(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(entry._replace(events=(), consumed=()) if entry.update else entry for entry in entries)


def _later(rules: Rules, entry: Entry | None) -> Entry | None:
    if rules.one_statement or entry is None or not entry.update or not entry.events:
        return None
    return entry._replace(update="")


def _acknowledge(setup: Setup, state: State, index: int, entries: list[Entry] | tuple[Entry, ...]) -> State:
    for entry in entries:
        live = state.workers[index].lives[entry.run]
        if live is not None and live.grant == entry.grant and entry.update and live.open is None:
            state = _put_live(state, index, entry.run, None)
        if setup.rules.consumed == "after" and entry.consumed:
            unread = tuple(message for message in state.runs[entry.run].unread if message not in entry.consumed)
            state = _put_run(state, entry.run, unread=unread)
    return state


# -- claims and mail ------------------------------------------------------------------------------------------------


def _claimable(setup: Setup, state: State) -> list[int]:
    """``claim_due.sql`` and ``claim_mail.sql``."""
    found = []
    for number, run in enumerate(state.runs):
        if run.owner is not None or run.state not in ("pending", "suspended"):
            continue
        due = run.due == "now" or (run.due == "timer" and run.instant)
        mail = run.flag if not setup.rules.mail_by_predicate else bool(run.unread)
        if due or (mail and (run.state == "suspended" or CANCEL in run.unread)):
            found.append(number)
    return found


def _take(setup: Setup, state: State, number: int, run: int) -> tuple[State, int, int]:
    row = state.runs[run]
    token = _fresh(state, run) if setup.rules.claim_draws_token else row.token
    grant = _fresh(state, run)
    after = _put_run(state, run, owner=number, token=token, grant=grant, state="running", due="", flag=False)
    return after, token, grant


def _intake(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    rules, me = setup.rules, f"w{worker.number}"
    if isinstance(worker.claim, tuple):
        run, token, grant = worker.claim
        yield Step(
            f"{me}: learns that it has r{run}, reads history and mail",
            _put(_admit(setup, state, index, run, token, grant), index, claim=None),
        )
        return
    strangers = [
        number
        for number, run in enumerate(state.runs)
        if run.owner == worker.number
        and ((live := worker.lives[number]) is None or live.token != run.token)
    ]
    if worker.claim == "cut":
        after = state
        for run in strangers if rules.strangers_looked_for != "never" else ():
            after = _admit(setup, after, index, run, state.runs[run].token, state.runs[run].grant)
        yield Step(f"{me}: connects again and looks for runs it does not know of", _put(after, index, claim=None))
        return
    if setup.hints and not worker.wants:
        if rules.polled:
            yield Step(f"{me}: the time for a look has come", _put(state, index, wants=True))
        return
    claimable = _claimable(setup, state) if worker.process == "up" and not worker.dead else []
    for run in claimable:
        after, token, grant = _take(setup, state, worker.number, run)
        yield Step(f"{me}: claims r{run}", _put(after, index, claim=(run, token, grant)))
    if strangers and rules.strangers_looked_for == "always":
        run = strangers[0]
        after = _admit(setup, state, index, run, state.runs[run].token, state.runs[run].grant)
        yield Step(f"{me}: finds that r{run} is its own", after)
    news = False
    for run, live in enumerate(worker.lives):
        # One read shows the mail of the runs that the worker owns by then; of those it merely believes to own, nothing else.
        if live is not None and not live.leaving and any(m not in live.seen for m in state.runs[run].unread):
            news = True
            yield Step(f"{me}: reads r{run}'s mail", _hand_over(setup, state, index, run, state.runs[run].unread))
    if setup.hints and not claimable and not news:
        yield Step(f"{me}: looks and finds nothing", _put(state, index, wants=False))


def _admit(setup: Setup, state: State, index: int, run: int, token: int, grant: int) -> State:
    row = state.runs[run]
    after = _put_live(state, index, run, Live(token, grant, row.history, (), None, False))
    if row.state == "ended":
        return after
    return _hand_over(setup, after, index, run, row.unread)


def _hand_over(setup: Setup, state: State, index: int, run: int, messages: tuple[str, ...]) -> State:
    live = state.workers[index].lives[run]
    assert live is not None
    fresh = [message for message in messages if not (setup.rules.seen_remembered and message in live.seen)]
    taken: list[str] = []
    for message in fresh:
        if _over(setup, run, live.history + tuple(taken)):
            break
        taken.append(message)
    live = live._replace(seen=live.seen + tuple(m for m in fresh if m not in live.seen))
    after = _put_live(state, index, run, _record(setup, run, live, tuple(taken), tuple(taken)))
    if setup.rules.consumed == "before" and taken:
        unread = tuple(message for message in after.runs[run].unread if message not in taken)
        after = _put_run(after, run, unread=unread)
    return after


# -- live runs ------------------------------------------------------------------------------------------------------


def _record(setup: Setup, run: int, live: Live, events: tuple[str, ...], consumed: tuple[str, ...]) -> Live:
    """Put into the next commit what has happened to a live run, and its end if that is what follows."""
    seq = len(live.history)
    history = live.history + events
    update = ""
    if _over(setup, run, history):
        events, history, update = (*events, END), (*history, END), END
    if not events:
        return live
    entry = live.open or Entry(run, live.token, live.grant, seq, (), (), "", "")
    entry = entry._replace(events=entry.events + events, consumed=entry.consumed + consumed, update=update)
    return live._replace(history=history, open=entry, leaving=bool(update))


def _runs(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    for run, live in enumerate(worker.lives):
        if live is None or live.leaving:
            continue
        me = f"w{worker.number}"
        waits = _waits_for_timer(setup, run, live.history)
        if waits and state.runs[run].instant:
            yield Step(f"{me}: r{run}'s timer fires", _put_live(state, index, run, _record(setup, run, live, (TIMER,), ())))
        entry = live.open or Entry(run, live.token, live.grant, len(live.history), (), (), "", "")
        entry = entry._replace(update="release", due="timer" if waits else "")
        yield Step(f"{me}: gives r{run} back", _put_live(state, index, run, live._replace(open=entry, leaving=True)))


# -- being alive, being dead ----------------------------------------------------------------------------------------


def _guarded(state: State, number: int) -> bool:
    """A journal statement under way holds the worker's row (FOR KEY SHARE)."""
    worker = next((worker for worker in state.workers if worker.number == number), None)
    under_way = [statement for owner, statement in state.behind if owner == number and statement is not None]
    if worker is not None and worker.writer is not None:
        under_way.append(worker.writer)
    return any(statement.stage == "looked" for statement in under_way)


def _of_others(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    """What other workers do to this one."""
    rules = setup.rules
    others = [i for i, other in enumerate(state.workers) if i != index and other.process == "up" and not other.dead]
    for other in others:
        they = f"w{state.workers[other].number}"
        if worker.suspect and not worker.dead and not (rules.lease_held and _guarded(state, worker.number)):
            after = _put(state, index, dead=True)
            if not rules.stranded_freed:
                after = _put(after, other, todo=(*state.workers[other].todo, worker.number))
            yield Step(f"{they}: declares w{worker.number} dead", after)
        if not rules.stranded_freed and not state.workers[other].todo:
            continue
        for number, run in enumerate(state.runs):
            if run.owner is None or any(w.number == run.owner and w is not worker for w in state.workers):
                continue
            if not _alive(state, run.owner) or (not rules.dead_before_freed and worker.suspect):
                if not rules.stranded_freed and run.owner not in state.workers[other].todo:
                    continue
                token = _fresh(state, number) if rules.freeing_draws_token else run.token
                after = _put_run(
                    state, number, owner=None, token=token, grant=_fresh(state, number), due="now", state="suspended"
                )
                yield Step(f"{they}: frees r{number} of w{run.owner}", _hint(setup, after, None))
        break  # any of them: who it is makes no difference


def _lease(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    me = f"w{worker.number}"
    if worker.dead:
        number = max(w.number for w in state.workers) + 1
        nobody = (None,) * len(state.runs)
        after = _behind(state, worker)
        if worker.process == "draining":
            yield Step(f"{me}: learns that it is dead, and ends", _put(after, index, lives=nobody, writer=None, claim=None, process="gone"))
        else:
            fresh = Worker(number, False, False, "up", nobody, None, None)
            yield Step(f"{me}: learns that it is dead, and comes back as w{number}", _put(after, index, **fresh._asdict()))
    elif worker.suspect:
        yield Step(f"{me}: renews its lease, has its lock again", _put(state, index, suspect=False))
    if worker.process == "draining" and not worker.dead and not _guarded(state, worker.number):
        if all(live is None for live in worker.lives) and worker.writer is None:
            yield Step(f"{me}: leaves", _hint(setup, _put(state, index, dead=True, process="gone", claim=None), None))


def _behind(state: State, worker: Worker) -> State:
    """What the server was at for a worker stays with the server."""
    writer = worker.writer
    if writer is None or writer.stage not in ("sent", "looked"):
        return state
    return state._replace(behind=tuple(sorted((*state.behind, (worker.number, writer)), key=repr)))


def _faults(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    if worker.process == "gone":
        return
    me, left = f"w{worker.number}", state.faults

    def spend(kind: int) -> State:
        return state._replace(faults=(*left[:kind], left[kind] - 1, *left[kind + 1 :]))

    if left[KILL]:
        nobody = (None,) * len(state.runs)
        after = _put(
            _behind(spend(KILL), worker), index, process="gone", suspect=True, lives=nobody, writer=None, claim=None, todo=()
        )
        yield Step(f"{me}: is killed", after, False)
    if worker.process == "stopped":
        yield Step(f"{me}: is continued", _put(state, index, process="up"), False)
        if not worker.suspect:
            yield Step(f"{me}: its lease runs out", _put(state, index, suspect=True))
        return
    if left[STOP] and worker.process == "up":
        yield Step(f"{me}: is stopped", _put(spend(STOP), index, process="stopped"), False)
    if left[UNLOCK] and not worker.suspect and not worker.dead:
        yield Step(f"{me}: its lock is gone", _put(spend(UNLOCK), index, suspect=True), False)
    if left[DRAIN] and worker.process == "up":
        yield Step(f"{me}: is told to leave", _put(spend(DRAIN), index, process="draining"), False)
    if left[CUT] and worker.writer is not None and worker.writer.stage != "broken":
        # Either the server has not had the statement at all, or it has and may still be at it, or it has done it.
        after = _put(spend(CUT), index, writer=Statement(worker.writer.entries, "broken", broken=True))
        if worker.writer.stage == "answered":
            yield Step(f"{me}: the answer to its commit is lost", after, False)
        else:
            yield Step(f"{me}: the journal's connection breaks", _behind(after, worker), False)
    if left[CUT_CLAIM]:
        after = _put(spend(CUT_CLAIM), index, claim="cut")
        if isinstance(worker.claim, tuple):
            yield Step(f"{me}: the answer to its claim is lost", after, False)
        elif worker.claim is None and worker.process == "up" and not worker.dead:
            after = after._replace(behind=tuple(sorted((*after.behind, (worker.number, None)), key=repr)))
            yield Step(f"{me}: the connection breaks during a claim", after, False)


# -- canonical form -------------------------------------------------------------------------------------------------


def _fresh(state: State, run: int) -> int:
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


def _canonical(state: State) -> State:
    """Give tokens the lowest numbers that keep their order: states that differ in nothing else are the same."""
    for run in range(len(state.runs)):
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
    return _put_run(state, run, token=ranks[row.token], grant=ranks[row.grant])._replace(
        workers=tuple(map(worker, state.workers)),
        behind=tuple(sorted(((owner, statement(old)) for owner, old in state.behind), key=repr)),
    )
