"""What things cost, counted and never timed: statements, commits, log records and bytes, events read again.

Each bound stands a little above what is counted today, and beside it stands what makes the number. If a change costs
more and is worth it, the bound is raised in the same commit, with the reason; if one saves, the bound follows it down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import psycopg
import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

import continuum
from continuum.models import HistoryEvent, Run
from continuum.worker import claims, exchange, sql
from tests.app import workflows as flows
from tests.waiting_for import eventually
from tests.workers import worker

pytestmark = pytest.mark.django_db(transaction=True)


class Bound(NamedTuple):
    """The most that something may cost, and what it is that costs that."""

    most: float
    because: str


#: For each kind of workflow: statements of the client and of the worker, and what stands in the server's log, for one
#: that runs alone, so that nothing shares its commits. A hint is a commit as well: one that nobody waits for.
ALONE = {
    "five steps": {
        "client": Bound(1, "the insert"),
        "claims": Bound(1, "its claim"),
        "journal": Bound(5, "one a step; the end is recorded with the last"),
        "hints": Bound(1.4, "its end, for whoever waits for it; the rest is that of the run before"),
        "commits": Bound(9, "start, claim, five steps, and hints of the start and of the end"),
        "records": Bound(45, "three versions of a row with its indexes, six events, locks on the worker's row"),
        "bytes": Bound(3_850, "as many; half of it are the indexes of the run's row"),
    },
    "a timer": {
        "client": Bound(1, "the insert"),
        "claims": Bound(1, "its claim"),
        "journal": Bound(1, "it has fired, and with that the run has ended: to begin it writes nothing"),
        "hints": Bound(1.4, "its end"),
        "commits": Bound(5, "start, claim, end, two hints"),
        "records": Bound(29, "three versions of a row, two events"),
        "bytes": Bound(2_400, "as many"),
    },
    "a signal": {
        "client": Bound(3, "the insert; the message; and whom to tell of it"),
        "claims": Bound(2, "its claim, and the read of its mail"),
        "journal": Bound(2, "its row says what it waits for; the signal, and with that the end"),
        "hints": Bound(1.4, "its end"),
        "commits": Bound(8, "start, claim, what it waits for, message, end, three hints"),
        "records": Bound(43, "four versions of a row, a message that comes and goes, two events"),
        "bytes": Bound(3_400, "as many"),
    },
    "a child": {
        "client": Bound(1, "the insert"),
        "claims": Bound(4, "claims of both and one for nothing, which the child's hint asks for; the read of its word"),
        "journal": Bound(5, "parent, child and parent again; the child's row; its word"),
        "hints": Bound(3.4, "there is a child, and two ends"),
        "commits": Bound(11, "start, three claims, three records, four hints"),
        "records": Bound(66, "two runs of three versions, a message that comes and goes, three events"),
        "bytes": Bound(5_300, "as many"),
    },
}

#: One of two hundred workflows of five steps that are started, and run, together, and so share commits.
TOGETHER = {
    "commits": Bound(0.25, "about 0.1 where it is two hundred, 0.04 where it is thousands"),
    "records": Bound(28.5, "as above without the locks"),
    "bytes": Bound(3_600, "as many, with the odd page of an index that is split"),
}

#: What a worker with nothing to do asks each time it polls, which is once a second by default, by connection.
IDLE = {
    "claims": Bound(1.5, "one look for all there might be; every five seconds one for runs it does not know it has"),
    "tasks": Bound(1.5, "one look for tasks; every five seconds one for those it does not know it has"),
    "maintenance": Bound(2.2, "a look for dead workers; every five seconds two for what they have left"),
    "lease": Bound(0.4, "a renewal every ten seconds"),
}


class Written(NamedTuple):
    """What the log holds between two moments; images of whole pages, which follow the checkpoints, are left out."""

    commits: int
    records: int
    bytes: int


# What each look at the log leaves in it.
OWN = Written(1, 2, 90)


class Log:
    """Reads the server's log from where it stands now on; needs pg_walinspect, which PostgreSQL has from 15 on."""

    def __init__(self) -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
        except Exception as error:
            pytest.skip(f"the server's log cannot be read: {error}")
        self._from = self._position()

    def written(self) -> Written:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT
                    coalesce(sum(s.count) FILTER (WHERE s.type LIKE 'Transaction/COMMIT%%'), 0)::int,
                    coalesce(sum(s.count), 0)::int, coalesce(sum(s.size), 0)::int
                FROM pg_get_wal_stats(%s, %s, true) AS s (type, count, count_percentage, size)
                """,
                [self._from, self._position()],
            )
            commits, records, size = cursor.fetchone()
        return Written(commits - OWN.commits, records - OWN.records, size - OWN.bytes)

    def _position(self) -> str:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
            position = cursor.fetchone()[0]
            # No more can be read than is flushed: a commit that writes something and waits for that.
            cursor.execute("SET LOCAL synchronous_commit = on")
            cursor.execute("SELECT pg_logical_emit_message(true, 'costs', '')")
        return position


@pytest.fixture
def said(monkeypatch):
    """Every statement of the worker in this process: what its connection is for, and its name."""
    names = {sql.load(path.name[:-4]): path.name[:-4] for path in files(sql).iterdir() if path.name.endswith(".sql")}
    said: list[tuple[str, str]] = []
    by_cursor, by_exchange = psycopg.AsyncCursor.execute, exchange._ready

    def note(connection, query):
        name = names.get(str(query), str(query))
        # One that goes along with a record is a hint all the same.
        purpose = "hints" if name == "hint_of_end" else connection.info.get_parameters()["application_name"].split()[1]
        said.append((purpose, name))

    async def execute(self, query, *args, **kwargs):
        note(self.connection, query)
        return await by_cursor(self, query, *args, **kwargs)

    async def ready(connection, text, parameters):
        note(connection, text)
        return await by_exchange(connection, text, parameters)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", execute)
    monkeypatch.setattr(exchange, "_ready", ready)
    return said


@pytest.fixture
def patient(settings):
    """A worker that does not poll: what it does, it does because it is told to."""
    settings.CONTINUUM = {"POLL_INTERVAL": 3600, "LEASE_TTL": 7200}


@continuum.workflow(name="costs.child")
async def child(n: int) -> int:
    return n


@continuum.workflow(name="costs.parent")
async def parent() -> int:
    return await child(1)


def ended(run: Run) -> None:
    eventually(lambda: Run.objects.filter(id=run.id, completed_at__isnull=False).exists())


def signalled(run: Run, count: Callable[[Callable[[], object]], None]) -> None:
    eventually(lambda: Run.objects.filter(id=run.id, state="suspended").exists())
    count(lambda: continuum.signal(run, "go", 1))


KINDS = {
    "five steps": (lambda: continuum.start(flows.five_steps, 1), None),
    "a timer": (lambda: continuum.start(flows.naps, 0.05), None),
    "a signal": (lambda: continuum.start(flows.listens), signalled),
    "a child": (lambda: continuum.start(parent), None),
}
RUNS, TRIES = 5, 6


def run_alone(kind: str) -> int:
    """Run one to its end and return how many statements the client has used."""
    counted = 0

    def count(call):
        nonlocal counted
        with CaptureQueriesContext(connection) as queries:
            found = call()
        counted += len(queries)
        return found

    start, then = KINDS[kind]
    run = count(start)
    if then is not None:
        then(run, count)
    ended(run)
    return counted


def over(found: dict[str, float], bounds: dict[str, Bound]) -> dict[str, str]:
    return {
        name: f"{found[name]:g} instead of at most {bound.most:g} ({bound.because})"
        for name, bound in bounds.items()
        if found[name] > bound.most
    }


@pytest.mark.parametrize("kind", ALONE)
def test_a_workflow_costs_no_more_statements_commits_and_log_than_it_did(said, patient, kind):
    found: list[dict[str, float]] = []
    with worker():
        run_alone(kind)  # the first prepares statements
        for _ in range(TRIES):
            said.clear()
            log = Log()
            client = sum(run_alone(kind) for _ in range(RUNS))
            written = log.written()
            by_purpose = Counter(purpose for purpose, _ in said)
            assert all(by_purpose[purpose] for purpose in ("claims", "journal", "hints"))  # they are seen at all
            counted = {
                "client": client,
                **{purpose: by_purpose[purpose] for purpose in ("claims", "journal", "hints")},
                **written._asdict(),
            }
            found.append({name: value / RUNS for name, value in counted.items()})
            if not over(found[-1], ALONE[kind]):
                return
    # The server writes for its own purposes as well, now and then: the least of a few tries counts.
    least = {name: min(each[name] for each in found) for name in found[0]}
    assert not over(least, ALONE[kind]), Counter(said)


def test_workflows_that_run_together_share_what_they_cost(patient):
    with worker(concurrency=200):
        run_alone("five steps")
        found = []
        for _ in range(TRIES):
            log = Log()
            continuum.start_many(flows.five_steps, range(200))
            eventually(lambda: not Run.objects.filter(completed_at__isnull=True).exists(), 60)
            found.append({name: value / 200 for name, value in log.written()._asdict().items()})
            if not over(found[-1], TOGETHER):
                return
    assert not over({name: min(each[name] for each in found) for name in found[0]}, TOGETHER)


def test_a_live_run_is_never_read_again_and_one_that_changes_hands_once(said, patient, monkeypatch):
    read: list[int] = []
    real = claims.load_histories

    async def load_histories(*args):
        histories = await real(*args)
        read.extend(len(events) for events in histories.values())
        return histories

    monkeypatch.setattr(claims, "load_histories", load_histories)
    with worker():
        run = continuum.start(flows.collects, 30)
        for number in range(29):
            continuum.signal(run, "item", number)
        eventually(lambda: HistoryEvent.objects.filter(run_id=run.id).count() == 29)
        eventually(lambda: Run.objects.filter(id=run.id, state="suspended").exists())
        assert read == []
    with worker():
        continuum.signal(run, "item", 29)
        ended(run)
    assert read == [29]


def test_a_worker_with_nothing_to_do_asks_little(said):
    """Counted by the poll, whose interval is a second: whoever slows it down slows all the others down as well."""
    with worker():
        eventually(lambda: ("claims", "intake_look") in said, 30)
        said.clear()
        eventually(lambda: Counter(said)["claims", "intake_look"] >= 6, 60)
        counted = Counter(said)
    polls = counted["claims", "intake_look"]
    by_purpose = Counter(dict.fromkeys(IDLE, 0.0))
    for (purpose, _), number in counted.items():
        by_purpose[purpose] += number / polls
    assert not over(by_purpose, IDLE), counted
    assert by_purpose.keys() <= IDLE.keys() | {"heartbeats"}, counted
