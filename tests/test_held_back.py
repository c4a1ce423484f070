"""What the journal does with runs whose rows somebody holds, in any order of events; the database is made up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from unittest import mock
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings, strategies as st

from continuum.core.history import Event, EventType
from continuum.worker import held_back, journal
from continuum.worker.journal import Journal
from continuum.worker.live import LiveRun, RowUpdate
from tests.waiting_for import eventually_async

RUNS = 3
NUMBERS = st.integers(0, RUNS - 1)
STEPS = st.lists(
    st.tuples(st.sampled_from(["note", "note", "summary", "adopt", "end", "lose"]), NUMBERS)
    | st.tuples(st.sampled_from(["lock row", "lock other", "unlock row", "unlock other"]), NUMBERS)
    | st.tuples(st.sampled_from(["turn", "turn", "pause"]), st.just(0))
    | st.just(("flush", 0)),
    max_size=40,
)


class Database:
    """What is locked, and what has been written: by run, the numbers of its events."""

    def __init__(self):
        self.rows, self.others = set(), set()
        self.written = {}
        self.left_out = []

    async def record(self, connection, worker_id, batch):
        if any(entry.live in self.others or (entry.update is not None and entry.live in self.rows) for entry in batch):
            await asyncio.sleep(0)
            raise psycopg.errors.LockNotAvailable
        return await self._write(batch)

    async def record_free(self, connection, worker_id, batch, on_left_out):
        locked = set()
        for entry in batch:
            if entry.update is None or entry.live not in self.rows:
                continue
            if entry.update.keep_owner and entry.outbox is None:
                entry.update = None
                on_left_out(entry.live)
            else:
                locked.add(entry.live.id)
        free = [entry for entry in batch if entry.live.id not in locked]
        if any(entry.live in self.others for entry in free):
            await asyncio.sleep(0)
            raise psycopg.errors.LockNotAvailable
        return *(await self._write(free)), locked

    async def _write(self, batch):
        await asyncio.sleep(0)
        assert len({entry.live for entry in batch}) == len(batch), "two entries of a run in one commit"
        for entry in batch:
            self.written.setdefault(entry.live, []).extend(event.seq for event in entry.events)
        return [], None


class World:
    """A journal, its runs, and what they have handed over."""

    def __init__(self):
        self.database = Database()
        self.durable = []
        self.journal = Journal(
            self._connect,
            1,
            on_durable=self.durable.extend,
            on_fenced=None,
            on_refused=None,
            on_left_out=self.database.left_out.append,
        )
        self.lives = [LiveRun(uuid4(), n, None, None, 0) for n in range(RUNS)]
        self.noted = dict.fromkeys(self.lives, 0)
        self.lost = {}  # how much was written of those that were dropped while they were held back

    async def _connect(self):
        async def close():
            pass

        return SimpleNamespace(closed=False, close=close, prepare_threshold=None)

    def note(self, live):
        self.noted[live] += 1
        entry = self.journal.entry(live)
        entry.events.append(Event(self.noted[live], EventType.SIGNAL_RECEIVED, None, "x", "1", 0))
        return entry

    async def step(self, what, number):
        live, database = self.lives[number], self.database
        match what:
            case "lock row":
                database.rows.add(live)
            case "lock other":
                database.others.add(live)
            case "unlock row":
                database.rows.discard(live)
            case "unlock other":
                database.others.discard(live)
            case "turn":
                await asyncio.sleep(0)
            case "pause":
                await asyncio.sleep(0.001)
            case "flush":
                await self.flush()
            case _ if live.gone or live.leaving:
                pass
            case "note":
                self.note(live)
            case "summary":
                self.journal.entry(live).update = RowUpdate("suspended", True)
            case "adopt":
                entry = self.note(live)
                entry.update = RowUpdate("running", True)
                entry.send().adopted = (1, "other")
            case "end":
                self.note(live).update = RowUpdate("completed", False, completed_us=1)
                live.leaving = True
            case "lose":
                if live in self.journal._held._due:  # no commit is at it
                    self.lost[live] = len(self.database.written.get(live, []))
                self.journal.forget(live)
                live.gone = live.leaving = True

    async def flush(self):
        """Nobody but those who are locked out waits."""
        async with asyncio.timeout(10):
            await self.journal.flush()
        for live in self.lives:
            if not live.gone and not live.held_back:
                assert self.database.written.get(live, []) == [*range(1, self.noted[live] + 1)]


async def live_through(world, steps):
    writing = asyncio.create_task(world.journal.run())
    try:
        for what, number in steps:
            await world.step(what, number)
            for written in world.database.written.values():
                assert written == [*range(1, len(written) + 1)], "out of order, twice, or with a gap"
            assert len(world.journal._held._behind) <= world.journal.held_back <= RUNS
        world.database.rows.clear()
        world.database.others.clear()
        await world.flush()  # a commit that is under way may have met a lock before
        await eventually_async(lambda: world.journal.held_back == 0)
        await world.flush()
        for live in world.lives:
            assert live.gone or live.unacknowledged == sum(entry.live is live for entry in world.durable)
        for live, written in world.lost.items():
            assert len(world.database.written.get(live, [])) == written
        assert not writing.done()
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


def check(steps):
    world = World()
    with (
        mock.patch.object(held_back, "FIRST_PAUSE", 0.0005),
        mock.patch.object(held_back, "LONGEST_PAUSE", 0.002),
        mock.patch.object(journal, "record", world.database.record),
        mock.patch.object(journal, "record_free", world.database.record_free),
    ):
        asyncio.run(live_through(world, steps))


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_every_record_is_written_once_and_in_order_whatever_is_locked_meanwhile(steps):
    check(steps)


@pytest.mark.parametrize("lock", ["row", "other"])
@pytest.mark.parametrize("turns", range(10))
def test_what_is_added_at_any_moment_while_a_lock_is_met_comes_after_what_meets_it(lock, turns):
    others = [("note", 1), ("end", 2)]
    meets = [(f"lock {lock}", 0), ("adopt", 0), *others[:1], *[("turn", 0)] * turns, ("note", 0), *others]
    check([*meets, ("pause", 0), ("flush", 0), ("note", 0), ("pause", 0), (f"unlock {lock}", 0)])
