"""Journals written to by hand: what a worker's engine hands over, without an engine."""

from __future__ import annotations

import json
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from continuum.core.children import ChildStart, Successor
from continuum.core.definitions import registry
from continuum.core.execution import Execution, RunIdentity
from continuum.core.history import Event
from continuum.ids import uuid7
from continuum.worker.connections import connect
from continuum.worker.journal import JOURNAL_SESSION, Journal
from continuum.worker.leases import Lease
from continuum.worker.live import Entry, LiveRun, RowUpdate
from continuum.worker.outbox_writing import write_outbox
from continuum.worker.recording import statement
from continuum.worker.sql import load
from tests.app import workflows as flows

__all__ = ["Desk", "desks", "rows", "sessions"]

TIME_US = 1_700_000_000_000_000


async def rows(connection, statement, *parameters):
    return await (await connection.execute(statement, parameters)).fetchall()


@asynccontextmanager
async def sessions(count=1):
    """A worker's connections; a single one is given as it is."""
    opened = [await connect("default", application_name=f"test {index}") for index in range(count)]
    try:
        yield opened[0] if count == 1 else opened
    finally:
        for connection in opened:
            await connection.close()


class Desk:
    """A registered worker and its journal. ``sent`` is what the journal says whom to tell, newest last."""

    def __init__(self, connection, worker_id, link):
        self.connection = connection
        self.worker_id = worker_id
        self.sent = []
        self.refused = []
        self.journal = Journal(
            link,
            worker_id,
            on_durable=lambda entries: None,
            on_fenced=lambda live: None,
            on_refused=lambda live, entry, error: self.refused.append(error),
            on_sent=self.sent.append,
        )

    async def own(self, run_id=None, *, flow=flows.echo, owned=True, **columns):
        """Insert a run and return it as one that is live here; ``owned=False``: it is live nowhere."""
        definition = registry.workflow(flow.name)
        run_id = run_id or uuid7()
        values = {
            "id": run_id,
            "correlation_id": run_id,
            "workflow": definition.name,
            "version_hash": definition.version_hash,
            "state": "running" if owned else "suspended",
            "owner_id": self.worker_id if owned else None,
            "input": '["x"]',
            **columns,
        }
        names = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        [(token,)] = await rows(
            self.connection,
            f"INSERT INTO continuum_runs ({names}, lease_token)"
            f" VALUES ({marks}, nextval('continuum_lease_token_seq')) RETURNING lease_token",
            *values.values(),
        )
        return self.live(run_id, token, definition)

    async def take(self, run_id):
        """Make a run that is there already this worker's."""
        [(token, workflow)] = await rows(
            self.connection,
            "UPDATE continuum_runs SET owner_id = %s, state = 'running', next_wakeup_at = NULL,"
            " lease_token = nextval('continuum_lease_token_seq') WHERE id = %s RETURNING lease_token, workflow",
            self.worker_id,
            run_id,
        )
        return self.live(run_id, token, registry.workflow(workflow))

    def live(self, run_id, token, definition):
        execution = Execution(definition, RunIdentity(run_id), '["x"]')
        return LiveRun(run_id, token, definition, execution, TIME_US)

    async def write(self, *entries):
        """Commit entries together; returns the ids of the runs that are not this worker's."""
        lost, _ = await self.journal._write(list(entries))
        return lost

    async def record(self, *entries):
        """Execute the journal's statement for these entries, in whatever transaction is open."""
        lost = await rows_of(self.connection, *statement(self.worker_id, list(entries)))
        assert lost == []

    @asynccontextmanager
    async def uncommitted(self, *entries):
        """A commit that has written all it has to write, and does not end before the block does."""
        async with self.connection.transaction():
            await self.record(*entries)
            await write_outbox(self.connection, entries)
            yield

    async def runs(self, *run_ids):
        """Return state, parent and command of runs."""
        found = await rows(
            self.connection,
            "SELECT id, state, parent_run_id, parent_command_id FROM continuum_runs WHERE id = ANY(%s)",
            list(run_ids),
        )
        by_id = {run_id: tuple(rest) for run_id, *rest in found}
        return [by_id[run_id] for run_id in run_ids]

    async def inbox(self, run_id):
        """Return kind, name or command, and payload of a run's unread messages, in order."""
        found = await rows(
            self.connection,
            "SELECT kind, coalesce(name, command_id), payload::text FROM continuum_inbox"
            " WHERE run_id = %s AND consumed_at IS NULL ORDER BY id",
            run_id,
        )
        return [(kind, what, json.loads(payload)) for kind, what, payload in found]

    async def send(self, run_id, name, payload="null", *, delivery_id=None, kind="signal", connection=None):
        """Do what ``continuum.signal`` and ``cancel`` do."""
        found = await rows_of(
            connection or self.connection,
            load("client_send"),
            {
                "run_id": run_id,
                "namespace": None,
                "kind": kind,
                "name": name,
                "payload": payload,
                "delivery_id": delivery_id,
            },
        )
        return found[0][3]


async def rows_of(connection, statement, parameters):
    return await (await connection.execute(statement, parameters)).fetchall()


@asynccontextmanager
async def desks(count=1):
    """As many workers, each with a connection of its own beside its journal's."""
    async with AsyncExitStack() as stack:
        opened = []
        for number in range(count):
            link = partial(connect, "default", application_name=f"desk {number}", session=JOURNAL_SESSION)
            connection = await link()
            stack.push_async_callback(connection.close)
            lease = Lease(30.0)
            await lease.register(connection, name=f"desk {number}", queues=[], info={})
            desk = Desk(connection, lease.worker_id, link)
            stack.push_async_callback(_close, desk)
            opened.append(desk)
        yield opened[0] if count == 1 else opened


async def _close(desk):
    if desk.journal._connection is not None:
        await desk.journal._connection.close()


def event(seq=1, type_="run_completed", data="{}"):
    return Event(seq, type_, None, None, data, TIME_US)


def ended(live, state="completed", *, result=None, error=None, seq=1):
    """The last entry of a run, which reports to its parent."""
    entry = Entry(live)
    entry.events = [event(seq, f"run_{state}")]
    entry.update = RowUpdate(state, False, result=result, error=error, completed_us=TIME_US)
    entry.send().report = True
    return entry


def continued(live, new=None, *signals, seq=1):
    """The last entry of a run that goes on as another."""
    entry = Entry(live)
    entry.events = [event(seq, "run_continued")]
    entry.update = RowUpdate("completed", False, completed_us=TIME_US)
    entry.send().successor = Successor(new or uuid7(), '["next"]', signals)
    return entry


def starting(live, *children):
    """An entry that starts children; it records nothing, as nothing has come in."""
    entry = Entry(live)
    entry.send().children += children
    return entry


def child(command="0:1", *, run_id=None, flow=flows.echo, **more):
    return ChildStart(run_id or uuid.uuid4(), command, registry.workflow(flow.name), '["x"]', **more)


def told_to_stop(live, reason="enough", *, seq=1):
    """An entry that records a request to cancel, and passes it on."""
    entry = Entry(live)
    entry.events = [event(seq, "cancel_requested", json.dumps({"reason": reason}))]
    entry.send().cascade = reason
    return entry


def quiet(live):
    """An entry that brings a run's row up to date."""
    entry = Entry(live)
    entry.update = RowUpdate("suspended", True)
    return entry
