"""Connections that are opened before anybody waits for them."""

import asyncio

import psycopg
import pytest

from continuum.ids import uuid7
from continuum.models import HistoryEvent, Run
from continuum.worker import claims
from continuum.worker.ahead import Ahead, try_claims, try_journal
from continuum.worker.claims import load_histories
from continuum.worker.live import Entry, RowUpdate
from continuum.worker.recording import record
from tests.desks import desks, event, rows
from tests.waiting_for import eventually, eventually_async, sessions_of
from tests.workers import worker


class Line:
    """What stands in for a connection."""

    prepare_threshold: int | None = 2

    def __init__(self):
        self.closed = False

    async def close(self):
        self.closed = True


class Exchange:
    """Opens lines, or fails to."""

    def __init__(self, *troubles):
        self.opened = []
        self.tried = []
        self.troubles = list(troubles)

    async def connect(self):
        if self.troubles:
            raise self.troubles.pop(0)
        self.opened.append(Line())
        return self.opened[-1]

    async def try_out(self, line):
        self.tried.append(line)

    def ahead(self):
        return Ahead(self.connect, self.try_out)


class TestOpening:
    async def opened(self, exchange):
        ahead = exchange.ahead()
        ahead.open()
        await eventually_async(lambda: ahead._opening.done())
        return ahead

    def test_the_first_is_there_and_tried_out_before_it_is_asked_for(self):
        async def check():
            exchange = Exchange()
            ahead = await self.opened(exchange)
            assert exchange.tried == exchange.opened
            assert [await ahead()] == exchange.opened

        asyncio.run(check())

    def test_who_asks_while_it_is_being_opened_waits_for_it(self):
        async def check():
            exchange = Exchange()
            ahead = exchange.ahead()
            ahead.open()
            assert [await ahead()] == exchange.opened == exchange.tried

        asyncio.run(check())

    def test_the_next_is_opened_when_it_is_asked_for(self):
        async def check():
            exchange = Exchange()
            ahead = await self.opened(exchange)
            assert [await ahead(), await ahead()] == exchange.opened
            assert len(exchange.opened) == 2
            assert len(exchange.tried) == 1

        asyncio.run(check())

    def test_one_that_broke_meanwhile_is_not_handed_out(self):
        async def check():
            exchange = Exchange()
            ahead = await self.opened(exchange)
            await exchange.opened[0].close()
            assert await ahead() is exchange.opened[1]

        asyncio.run(check())

    def test_trouble_is_told_to_whoever_asks_and_to_nobody_else(self):
        async def check():
            exchange = Exchange(psycopg.OperationalError("gone"), psycopg.OperationalError("still gone"))
            ahead = await self.opened(exchange)
            with pytest.raises(psycopg.OperationalError, match="still gone"):
                await ahead()
            assert [await ahead()] == exchange.opened

        asyncio.run(check())

    @pytest.mark.parametrize("error", [psycopg.errors.UndefinedTable("no such table"), OSError("cut"), KeyError("x")])
    def test_one_that_cannot_be_tried_out_is_closed(self, error):
        async def check():
            exchange = Exchange()

            async def refused(line):
                raise error

            ahead = Ahead(exchange.connect, refused)
            ahead.open()
            assert await ahead() is exchange.opened[1]
            assert [line.closed for line in exchange.opened] == [True, False]

        asyncio.run(check())

    def test_nothing_is_tried_out_where_no_statement_is_prepared(self, monkeypatch):
        async def check():
            exchange = Exchange()
            monkeypatch.setattr(Line, "prepare_threshold", None)
            ahead = await self.opened(exchange)
            assert [await ahead()] == exchange.opened
            assert exchange.tried == []

        asyncio.run(check())

    def test_what_nobody_has_asked_for_is_closed_in_the_end(self):
        async def check():
            exchange = Exchange()
            ahead = await self.opened(exchange)
            await ahead.close()
            assert exchange.opened[0].closed

        asyncio.run(check())

    def test_whoever_is_cancelled_as_it_comes_leaves_it_closed(self):
        async def check():
            exchange, gate = Exchange(), asyncio.Event()

            async def connect():
                await gate.wait()
                return await exchange.connect()

            ahead = Ahead(connect, exchange.try_out)
            ahead.open()
            opening = ahead._opening
            opening.add_done_callback(lambda _: asking.cancel())  # before whoever asks hears of it
            asking = asyncio.create_task(ahead())
            await eventually_async(lambda: ahead._opening is None)
            gate.set()
            await asyncio.wait({asking})
            assert asking.cancelled()
            assert [line.closed for line in exchange.opened] == [True]

        asyncio.run(check())

    def test_what_somebody_has_is_not_closed(self):
        async def check():
            exchange = Exchange()
            ahead = await self.opened(exchange)
            line = await ahead()
            await ahead.close()
            assert not line.closed

        asyncio.run(check())


async def prepared(on):
    return {row[0] for row in await rows(on, "SELECT statement FROM pg_prepared_statements")}


@pytest.mark.django_db(transaction=True)
class TestTryingOut:
    def test_what_a_run_records_is_known_afterwards_and_nothing_is_written(self):
        async def check():
            async with desks() as desk:
                live = await desk.own()
                await try_journal(desk.connection, desk.worker_id)
                known = await prepared(desk.connection)
                assert len(known) >= 2
                entry = Entry(live)
                entry.events = [event()]
                assert await record(desk.connection, desk.worker_id, [entry]) == ([], None)
                entry = Entry(live)
                entry.events = [event(2)]
                entry.update = RowUpdate("completed", False)
                assert await record(desk.connection, desk.worker_id, [entry]) == ([], None)
                assert await prepared(desk.connection) == known
                return live.id

        run_id = asyncio.run(check())
        assert set(HistoryEvent.objects.values_list("run_id", flat=True)) == {run_id}
        assert Run.objects.count() == 1

    def test_what_is_asked_of_claimed_runs_is_known_afterwards(self):
        async def check():
            async with desks() as desk:
                await try_claims(desk.connection)
                known = await prepared(desk.connection)
                await load_histories(desk.connection, {uuid7(): 0})
                await load_histories(desk.connection, {uuid7(): 0, uuid7(): 0})
                assert await prepared(desk.connection) == known

        asyncio.run(check())

    @pytest.mark.parametrize("known", [0, 1, 2, 3, 4, 5, 9])
    def test_a_history_in_parts_reads_like_one(self, known, monkeypatch):
        """Whatever its length was thought to be."""

        async def check():
            async with desks() as desk:
                live = await desk.own()
                entry = Entry(live)
                entry.events = [event(seq) for seq in range(1, 6)]
                await desk.write(entry)
                whole = await load_histories(desk.connection, {live.id: 5})
                monkeypatch.setattr(claims, "PART", 2)
                assert await load_histories(desk.connection, {live.id: known}) == whole
                assert len(whole[live.id]) == 5

        asyncio.run(check())

    def test_one_history_reads_like_one_of_several(self):
        async def check():
            async with desks() as desk:
                lives = [await desk.own(), await desk.own()]
                entries = [Entry(live) for live in lives]
                for entry in entries:
                    entry.events = [event(seq) for seq in range(1, 4)]
                await desk.write(*entries)
                one, other = lives
                together = await load_histories(desk.connection, {one.id: 3, other.id: 3})
                assert await load_histories(desk.connection, {one.id: 3}) == {one.id: together[one.id]}
                assert [type(each) for each in together[one.id]] == [type(event())] * 3

        asyncio.run(check())


@pytest.mark.django_db(transaction=True)
def test_a_worker_can_record_at_once():
    with worker():
        eventually(lambda: list(sessions_of("continuum journal%").values()) == ["idle"])
    eventually(lambda: not sessions_of("continuum journal%"))
