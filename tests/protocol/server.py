"""The database's side of the protocol: what statements find and do."""

from __future__ import annotations

from collections.abc import Iterator

from tests.protocol.search import Step
from tests.protocol.states import CANCEL, END, REPORT, Entry, Setup, State, Statement, Worker, alive, fresh, put_run


def hint(setup: Setup, state: State, to: int | None) -> State:
    """Send a hint to a run's owner, or to all."""
    if not setup.hints:
        return state
    to_whom = {worker.number for worker in state.workers} if to is None else {to}
    return state._replace(hints=tuple(sorted(to_whom.union(state.hints))))


def send(setup: Setup, state: State, run: int, message: str) -> State:
    row = state.runs[run]
    after = put_run(state, run, unread=(*row.unread, message), flag=row.flag or row.owner is None)
    return hint(setup, after, row.owner)


# -- the journal's statement ----------------------------------------------------------------------------------------


def serve(setup: Setup, state: State, number: int, statement: Statement) -> Iterator[tuple[str, State, Statement, str]]:
    """The server goes on with a statement of worker ``number``."""
    rules = setup.rules
    if statement.stage == "sent":
        lost = []
        for entry in statement.entries:
            run = state.runs[entry.run]
            held = not rules.lease_checked or alive(state, number)
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
    if (entry.events or (entry.update and owned)) and run.grant != entry.grant:
        return state, f"w{number} writes to r{entry.run}, which has changed hands since it was claimed"
    state = put_run(state, entry.run, **changes)
    if entry.update == END and owned and setup.parent is not None and entry.run == len(state.runs) - 1:
        if state.runs[setup.parent].state != "ended":
            state = send(setup, state, setup.parent, REPORT)
    elif entry.update and owned:
        state = hint(setup, state, None)
    return state, ""


def left_behind(setup: Setup, state: State, number: int, statement: Statement | None) -> Iterator[Step]:
    """``state`` is without the statement."""
    if statement is None:
        for run in claimable(setup, state):
            if alive(state, number):
                after, _, _ = take(setup, state, number, run)
                yield Step(f"server: a claim left behind by w{number} takes r{run}", after)
        yield Step(f"server: a claim left behind by w{number} ends", state)
        return
    for label, after, result, bad in serve(setup, state, number, statement):
        if result.stage == "looked":
            after = after._replace(behind=tuple(sorted((*after.behind, (number, result)), key=repr)))
        yield Step(f"server: w{number}'s left-behind {label}", after, True, bad)
    yield Step(f"server: w{number}'s left-behind statement is aborted", state)


def claimable(setup: Setup, state: State) -> list[int]:
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


def take(setup: Setup, state: State, number: int, run: int) -> tuple[State, int, int]:
    row = state.runs[run]
    token = fresh(state, run) if setup.rules.claim_draws_token else row.token
    grant = fresh(state, run)
    after = put_run(state, run, owner=number, token=token, grant=grant, state="running", due="", flag=False)
    return after, token, grant


def guarded(state: State, number: int) -> bool:
    """A journal statement under way holds the worker's row (FOR KEY SHARE)."""
    worker = next((worker for worker in state.workers if worker.number == number), None)
    under_way = [statement for owner, statement in state.behind if owner == number and statement is not None]
    if worker is not None and worker.writer is not None:
        under_way.append(worker.writer)
    return any(statement.stage == "looked" for statement in under_way)


def behind(state: State, worker: Worker) -> State:
    """What the server was at for a worker stays with the server."""
    writer = worker.writer
    if writer is None or writer.stage not in ("sent", "looked"):
        return state
    return state._replace(behind=tuple(sorted((*state.behind, (worker.number, writer)), key=repr)))
