"""Events of large commits, which are brought by COPY."""

import asyncio

import pytest
from hypothesis import given, settings, strategies as st

from continuum.core.history import Event, EventType
from continuum.worker import recording
from continuum.worker.event_rows import COPY_EVENTS, event_rows
from continuum.worker.live import Entry, RowUpdate
from tests.desks import TIME_US, desks, event, rows
from tests.waiting_for import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

MANY = recording.COPY_FROM

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
records = st.lists(
    st.builds(
        Event,
        st.just(1),
        st.sampled_from([EventType.TIMER_FIRED, EventType.ACTIVITY_COMPLETED]),
        st.none() | texts,
        st.none() | texts,
        texts.map(lambda text: '{"a\\n\\u0000":"' + text.encode("ascii", "ignore").hex() + 'ä€\\\\"}'),
        st.integers(-(2**50), 2**53),
    ),
    min_size=1,
    max_size=5,
)


async def recorded(desk, run_ids=None):
    return await rows(
        desk.connection,
        "SELECT run_id, seq, type, command_id, name, data::text, (extract(epoch FROM recorded_at) * 1000000)::bigint "
        "FROM continuum_events ORDER BY run_id, seq",
    )


def entries_of(lives, update=None):
    entries = []
    for number, live in enumerate(lives):
        entry = Entry(live)
        entry.events = [event(data=f'{{"result":{number}}}')]
        entry.update = update
        entries.append(entry)
    return entries


class Statements:
    """The statements that go over a connection."""

    def __init__(self, monkeypatch):
        self.copies = 0
        original = recording.event_rows

        def counted(batch):
            self.copies += 1
            return original(batch)

        monkeypatch.setattr(recording, "event_rows", counted)


@given(records)
@settings(max_examples=30, deadline=None)
def test_copied_rows_are_those_that_an_insert_would_write(events):
    async def scenario():
        async with desks() as desk:
            written = []
            for copied in (True, False):
                async with desk.connection.transaction(force_rollback=True):
                    entry = Entry(await desk.own())
                    entry.events = [one._replace(seq=seq) for seq, one in enumerate(events, 1)]
                    if copied:
                        async with desk.connection.cursor() as cursor, cursor.copy(COPY_EVENTS) as copy:
                            await copy.write(event_rows([entry]))
                    else:
                        await desk.record(entry)
                    written.append([row[1:] for row in await recorded(desk)])
            assert written[0] == written[1]
            assert [row[2:] for row in written[0]] == [(e.command_id, e.name, e.data, e.time_us) for e in events]

    asyncio.run(scenario())


def test_a_commit_copies_from_a_number_of_events_on(monkeypatch):
    async def scenario():
        async with desks() as desk:
            said = Statements(monkeypatch)
            lives = [await desk.own() for _ in range(2 * MANY - 1)]
            assert await desk.write(*entries_of(lives[: MANY - 1])) == set()
            assert said.copies == 0
            assert await desk.write(*entries_of(lives[MANY - 1 :])) == set()
            assert said.copies == 1
            assert sorted(row[0] for row in await recorded(desk)) == sorted(live.id for live in lives)
            assert desk.journal.events == len(lives)

    asyncio.run(scenario())


def test_what_is_lost_keeps_nobody_else_from_being_recorded():
    async def scenario():
        async with desks() as desk:
            lives = [await desk.own() for _ in range(MANY + 5)]
            stale = [lives[3], lives[-1]]
            for live in stale:
                live.token -= 1
            lost = await desk.write(*entries_of(lives, RowUpdate("completed", False, completed_us=TIME_US)))
            assert lost == {live.id for live in stale}
            assert {row[0] for row in await recorded(desk)} == {live.id for live in lives} - lost
            states = await rows(desk.connection, "SELECT id FROM continuum_runs WHERE state = 'completed'")
            assert {run_id for (run_id,) in states} == {live.id for live in lives} - lost

    asyncio.run(scenario())


@pytest.mark.parametrize("data", ["{not json", '{"a":"\0"}', '{"a":"\ud800"}'])
def test_a_record_that_is_refused_keeps_nobody_else_from_being_recorded(data):
    async def scenario():
        async with desks() as desk:
            lives = [await desk.own() for _ in range(3 * MANY)]
            entries = entries_of(lives)
            entries[MANY].events = [event(data=data)]
            await desk.journal._commit(entries)
            assert len(desk.refused) == 1
            assert {row[0] for row in await recorded(desk)} == {live.id for live in lives} - {lives[MANY].id}

    asyncio.run(scenario())


def test_records_that_are_there_already_are_not_written_twice():
    """What a commit has written whose acknowledgement was lost."""

    async def scenario():
        async with desks() as desk:
            lives = [await desk.own() for _ in range(MANY)]
            await desk.write(*entries_of(lives))
            landed = await recording.landed(desk.journal._connection, entries_of(lives))
            assert landed == {live.id for live in lives}

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["before the rows", "after the rows"])
def test_a_connection_that_breaks_around_the_copy_leaves_all_or_nothing(monkeypatch, moment):
    async def scenario():
        async with desks() as desk:
            lives = [await desk.own() for _ in range(MANY)]
            entries = entries_of(lives, RowUpdate("suspended", True, progress='{"seen":1}'))
            entries[0].send()
            broken = []

            async def break_it():
                broken.append(desk.journal._connection)
                await desk.connection.execute(
                    "SELECT pg_terminate_backend(%s, 5000)", [desk.journal._connection.info.backend_pid]
                )

            write, send = recording.write_outbox, recording.event_rows

            async def late(connection, batch):
                if moment == "after the rows" and not broken:
                    await break_it()
                return await write(connection, batch)

            def early(batch):
                if moment == "before the rows" and not broken:
                    broken.append(desk.journal._connection)
                    desk.journal._connection.pgconn.finish()
                return send(batch)

            monkeypatch.setattr(recording, "write_outbox", late)
            monkeypatch.setattr(recording, "event_rows", early)
            assert await desk.write(*entries) == set()
            assert broken
            assert desk.journal._connection is not broken[0]
            assert [row[0] for row in await recorded(desk)] == sorted(live.id for live in lives)

    asyncio.run(scenario())


@pytest.mark.parametrize("runs", [1, 3, MANY])
def test_a_process_that_was_stopped_for_long_in_the_middle_of_a_commit_writes_it_again(monkeypatch, settings, runs):
    """The server has ended its transaction, and says so when it goes on: nothing is wrong with the records."""
    settings.CONTINUUM = {"LEASE_TTL": 1.0}

    async def scenario():
        async with desks() as desk:
            lives = [await desk.own() for _ in range(runs)]
            entries = entries_of(lives, RowUpdate("suspended", True))
            entries[0].send()
            stopped = []
            write = recording.write_outbox

            async def stop(connection, batch):
                if not stopped:
                    stopped.append(connection.info.backend_pid)

                    async def ended():
                        found = await rows(
                            desk.connection, "SELECT FROM pg_stat_activity WHERE pid = %s", connection.info.backend_pid
                        )
                        return not found

                    await eventually_async(ended)
                return await write(connection, batch)

            monkeypatch.setattr(recording, "write_outbox", stop)
            await desk.journal._commit(entries)
            assert stopped
            assert desk.refused == []
            assert {row[0] for row in await recorded(desk)} == {live.id for live in lives}

    asyncio.run(scenario())
