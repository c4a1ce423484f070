"""What may happen: the client, the clock, the workers, and all that goes wrong. ``states`` says what is modelled."""

from __future__ import annotations

from collections.abc import Iterator

from tests.protocol.search import Step
from tests.protocol.server import behind, claimable, guarded, hint, left_behind, send, serve, take
from tests.protocol.states import (
    CUT,
    CUT_CLAIM,
    DRAIN,
    END,
    KILL,
    REPORT,
    STOP,
    TIMER,
    UNLOCK,
    Entry,
    Live,
    Rules,
    Run,
    Setup,
    State,
    Statement,
    Worker,
    alive,
    canonical,
    fresh,
    messages,
    over,
    put,
    put_live,
    put_run,
    waits_for_timer,
)

__all__ = ["finished", "initial", "steps", "wrong"]


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
        recorded = messages(run.history)
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
    for label, after, helps, bad in _all_steps(setup, state):
        yield Step(label, canonical(after), helps, bad)


def _all_steps(setup: Setup, state: State) -> Iterator[Step]:
    yield from _outside(setup, state)
    for index, (number, statement) in enumerate(state.behind):
        rest = state._replace(behind=state.behind[:index] + state.behind[index + 1 :])
        yield from left_behind(setup, rest, number, statement)
    for index, worker in enumerate(state.workers):
        yield from _of_others(setup, state, index, worker)
        if worker.writer is not None and worker.writer.stage in ("sent", "looked"):
            for label, after, statement, bad in serve(setup, state, worker.number, worker.writer):
                yield Step(f"server: w{worker.number}'s {label}", put(after, index, writer=statement), True, bad)
        if worker.process in ("up", "draining"):
            yield from _journal(setup, state, index, worker)
            yield from _intake(setup, state, index, worker)
            yield from _runs(setup, state, index, worker)
            yield from _lease(setup, state, index, worker)
        yield from _faults(setup, state, index, worker)


def _outside(setup: Setup, state: State) -> Iterator[Step]:
    """The client and the clock."""
    if state.sent < len(setup.sends):
        run, message = setup.sends[state.sent]
        after = state._replace(sent=state.sent + 1)
        if state.runs[run].state == "ended":
            yield Step(f"client: r{run} has ended, {message!r} is not sent", after)
        else:
            yield Step(f"client: sends {message!r} to r{run}", send(setup, after, run, message))
    for number, run in enumerate(state.runs):
        if not run.instant and waits_for_timer(setup, number, run.history):
            yield Step(f"clock: the time of r{number}'s timer comes", put_run(state, number, instant=True))
    for number in state.hints:
        rest = state._replace(hints=tuple(other for other in state.hints if other != number))
        if setup.losses:
            yield Step(f"hint: one for w{number} is lost", rest, False)
        for index, worker in enumerate(state.workers):
            if worker.number == number and worker.process in ("up", "draining"):
                yield Step(f"hint: w{number} hears one", put(rest, index, wants=True), not setup.rules.polled)


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
            yield Step(f"{me}: sends a commit", put(state, index, lives=lives, writer=Statement(entries, "sent")))
    elif writer.stage == "broken":
        if rules.landed_assumed:
            after = _acknowledge(setup, state, index, writer.entries)
            yield Step(f"{me}: takes the commit for done", put(after, index, writer=None))
            return
        landed = [entry for entry in writer.entries if rules.landed_asked and _landed(state, entry)]
        rest = tuple(entry for entry in writer.entries if entry not in landed)
        after = _acknowledge(setup, state, index, landed)
        again = Statement(rest, "sent", broken=writer.broken) if rest else None
        yield Step(f"{me}: finds {len(landed)} of the commit's runs written", put(after, index, writer=again))
    elif writer.stage == "answered":
        if writer.conflict:
            after = put(state, index, writer=Statement(writer.entries, "broken", broken=False))
            bad = "" if writer.broken else f"w{worker.number}'s record is refused: its place is taken"
            yield Step(f"{me}: learns that the records are there already", after, True, bad)
            return
        if not writer.lost:
            after = _acknowledge(setup, state, index, writer.entries)
            yield Step(f"{me}: learns that the commit is durable", put(after, index, writer=None))
            return
        after = state
        for entry in writer.entries:
            live = worker.lives[entry.run]
            if entry.run in writer.lost and live is not None and live.grant == entry.grant:
                after = put_live(after, index, entry.run, None)
        rest = tuple(entry for entry in writer.entries if entry.run not in writer.lost)
        again = Statement(rest, "sent", broken=writer.broken) if rest else None
        yield Step(f"{me}: learns that {list(writer.lost)} is in other hands", put(after, index, writer=again))


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
            state = put_live(state, index, entry.run, None)
        if setup.rules.consumed == "after" and entry.consumed:
            unread = tuple(message for message in state.runs[entry.run].unread if message not in entry.consumed)
            state = put_run(state, entry.run, unread=unread)
    return state


# -- claims and mail ------------------------------------------------------------------------------------------------


def _intake(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    rules, me = setup.rules, f"w{worker.number}"
    if isinstance(worker.claim, tuple):
        run, token, grant = worker.claim
        yield Step(
            f"{me}: learns that it has r{run}, reads history and mail",
            put(_admit(setup, state, index, run, token, grant), index, claim=None),
        )
        return
    strangers = [
        number
        for number, run in enumerate(state.runs)
        if run.owner == worker.number and ((live := worker.lives[number]) is None or live.token != run.token)
    ]
    if worker.claim == "cut":
        after = state
        for run in strangers if rules.strangers_looked_for != "never" else ():
            after = _admit(setup, after, index, run, state.runs[run].token, state.runs[run].grant)
        yield Step(f"{me}: connects again and looks for runs it does not know of", put(after, index, claim=None))
        return
    if setup.hints and not worker.wants:
        if rules.polled:
            yield Step(f"{me}: the time for a look has come", put(state, index, wants=True))
        return
    free = claimable(setup, state) if worker.process == "up" and not worker.dead else []
    for run in free:
        after, token, grant = take(setup, state, worker.number, run)
        yield Step(f"{me}: claims r{run}", put(after, index, claim=(run, token, grant)))
    if strangers and rules.strangers_looked_for == "always":
        run = strangers[0]
        after = _admit(setup, state, index, run, state.runs[run].token, state.runs[run].grant)
        yield Step(f"{me}: finds that r{run} is its own", after)
    news = False
    for run, live in enumerate(worker.lives):
        if live is not None and not live.leaving and any(m not in live.seen for m in state.runs[run].unread):
            news = True
            yield Step(f"{me}: reads r{run}'s mail", _hand_over(setup, state, index, run, state.runs[run].unread))
    if setup.hints and not free and not news:
        yield Step(f"{me}: looks and finds nothing", put(state, index, wants=False))


def _admit(setup: Setup, state: State, index: int, run: int, token: int, grant: int) -> State:
    row = state.runs[run]
    after = put_live(state, index, run, Live(token, grant, row.history, (), None, False))
    if row.state == "ended":
        return after
    return _hand_over(setup, after, index, run, row.unread)


def _hand_over(setup: Setup, state: State, index: int, run: int, messages: tuple[str, ...]) -> State:
    live = state.workers[index].lives[run]
    assert live is not None
    fresh = [message for message in messages if not (setup.rules.seen_remembered and message in live.seen)]
    taken: list[str] = []
    for message in fresh:
        if over(setup, run, live.history + tuple(taken)):
            break
        taken.append(message)
    live = live._replace(seen=live.seen + tuple(m for m in fresh if m not in live.seen))
    after = put_live(state, index, run, _record(setup, run, live, tuple(taken), tuple(taken)))
    if setup.rules.consumed == "before" and taken:
        unread = tuple(message for message in after.runs[run].unread if message not in taken)
        after = put_run(after, run, unread=unread)
    return after


# -- live runs ------------------------------------------------------------------------------------------------------


def _record(setup: Setup, run: int, live: Live, events: tuple[str, ...], consumed: tuple[str, ...]) -> Live:
    """Put into the next commit what has happened to a live run, and its end if that is what follows."""
    seq = len(live.history)
    history = live.history + events
    update = ""
    if over(setup, run, history):
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
        waits = waits_for_timer(setup, run, live.history)
        if waits and state.runs[run].instant:
            fired = _record(setup, run, live, (TIMER,), ())
            yield Step(f"{me}: r{run}'s timer fires", put_live(state, index, run, fired))
        entry = live.open or Entry(run, live.token, live.grant, len(live.history), (), (), "", "")
        entry = entry._replace(update="release", due="timer" if waits else "")
        yield Step(f"{me}: gives r{run} back", put_live(state, index, run, live._replace(open=entry, leaving=True)))


# -- being alive, being dead ----------------------------------------------------------------------------------------


def _of_others(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    """What other workers do to this one."""
    rules = setup.rules
    others = [i for i, other in enumerate(state.workers) if i != index and other.process == "up" and not other.dead]
    for other in others:
        they = f"w{state.workers[other].number}"
        if worker.suspect and not worker.dead and not (rules.lease_locked and guarded(state, worker.number)):
            after = put(state, index, dead=True)
            if not rules.stranded_freed:
                after = put(after, other, todo=(*state.workers[other].todo, worker.number))
            yield Step(f"{they}: declares w{worker.number} dead", after)
        if not rules.stranded_freed and not state.workers[other].todo:
            continue
        for number, run in enumerate(state.runs):
            if run.owner is None or any(w.number == run.owner and w is not worker for w in state.workers):
                continue
            if not alive(state, run.owner) or (not rules.dead_before_freed and worker.suspect):
                if not rules.stranded_freed and run.owner not in state.workers[other].todo:
                    continue
                token = fresh(state, number) if rules.freeing_draws_token else run.token
                after = put_run(
                    state, number, owner=None, token=token, grant=fresh(state, number), due="now", state="suspended"
                )
                yield Step(f"{they}: frees r{number} of w{run.owner}", hint(setup, after, None))
        break  # any of them: who it is makes no difference


def _lease(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    me = f"w{worker.number}"
    if worker.dead:
        number = max(w.number for w in state.workers) + 1
        nobody = (None,) * len(state.runs)
        after = behind(state, worker)
        if worker.process == "draining":
            after = put(after, index, lives=nobody, writer=None, claim=None, process="gone")
            yield Step(f"{me}: learns that it is dead, and ends", after)
        else:
            after = put(after, index, **Worker(number, False, False, "up", nobody, None, None)._asdict())
            yield Step(f"{me}: learns that it is dead, and comes back as w{number}", after)
    elif worker.suspect:
        yield Step(f"{me}: renews its lease, has its lock again", put(state, index, suspect=False))
    idle = worker.writer is None and all(live is None for live in worker.lives)
    if idle and worker.process == "draining" and not worker.dead and not guarded(state, worker.number):
        yield Step(f"{me}: leaves", hint(setup, put(state, index, dead=True, process="gone", claim=None), None))


def _faults(setup: Setup, state: State, index: int, worker: Worker) -> Iterator[Step]:
    if worker.process == "gone":
        return
    me, left = f"w{worker.number}", state.faults

    def spend(kind: int) -> State:
        return state._replace(faults=(*left[:kind], left[kind] - 1, *left[kind + 1 :]))

    if left[KILL]:
        nobody = (None,) * len(state.runs)
        after = put(behind(spend(KILL), worker), index, process="gone", suspect=True)
        after = put(after, index, lives=nobody, writer=None, claim=None, todo=())
        yield Step(f"{me}: is killed", after, False)
    if worker.process == "stopped":
        yield Step(f"{me}: is continued", put(state, index, process="up"), False)
        if not worker.suspect:
            yield Step(f"{me}: its lease runs out", put(state, index, suspect=True))
        return
    if left[STOP] and worker.process == "up":
        yield Step(f"{me}: is stopped", put(spend(STOP), index, process="stopped"), False)
    if left[UNLOCK] and not worker.suspect and not worker.dead:
        yield Step(f"{me}: its lock is gone", put(spend(UNLOCK), index, suspect=True), False)
    if left[DRAIN] and worker.process == "up":
        yield Step(f"{me}: is told to leave", put(spend(DRAIN), index, process="draining"), False)
    if left[CUT] and worker.writer is not None and worker.writer.stage != "broken":
        # Either the server has not had the statement at all, or it has and may still be at it, or it has done it.
        after = put(spend(CUT), index, writer=Statement(worker.writer.entries, "broken", broken=True))
        if worker.writer.stage == "answered":
            yield Step(f"{me}: the answer to its commit is lost", after, False)
        else:
            yield Step(f"{me}: the journal's connection breaks", behind(after, worker), False)
    if left[CUT_CLAIM]:
        after = put(spend(CUT_CLAIM), index, claim="cut")
        if isinstance(worker.claim, tuple):
            yield Step(f"{me}: the answer to its claim is lost", after, False)
        elif worker.claim is None and worker.process == "up" and not worker.dead:
            after = after._replace(behind=tuple(sorted((*after.behind, (worker.number, None)), key=repr)))
            yield Step(f"{me}: the connection breaks during a claim", after, False)
