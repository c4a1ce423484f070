"""Connections over which no answer arrives, though the server is not at it: they are ended, and no others."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from continuum.worker import stalls
from continuum.worker.connections import connect
from continuum.worker.exchange import execute
from continuum.worker.stalls import PATIENCE, Stalls
from tests.desks import sessions
from tests.waiting_for import blocked, eventually_async

pytestmark = pytest.mark.django_db(transaction=True)


def watching():
    return Stalls(lambda: connect("default", application_name="stalls"))


def waits_for_long(connection):
    """Have it seem so."""
    connection.asked = time.monotonic() - PATIENCE - 1


async def answers(connection):
    try:
        return (await (await connection.execute("SELECT 1")).fetchone()) == (1,)
    except psycopg.OperationalError:
        return False


def test_what_the_server_is_not_at_is_given_up_at_the_second_look():
    async def scenario():
        async with sessions(2) as (stalled, other):
            watch = watching()
            waits_for_long(stalled)
            await watch.look()
            once = not stalled.closed
            await watch.look()
            return once, await answers(stalled), await answers(other)

    assert asyncio.run(scenario()) == (True, False, True)


def test_who_waits_finds_the_connection_broken():
    async def scenario(ask):
        async with sessions(2) as (waiting, other):
            await other.execute("SELECT pg_advisory_lock(1)")
            task = asyncio.create_task(ask(waiting))
            await blocked(other, waiting)
            stalls.hang_up(waiting)
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(task, 30)
            return waiting.closed

    for ask in (
        lambda connection: execute(connection, "SELECT pg_advisory_lock(%(key)s)", {"key": 1}),
        lambda connection: connection.execute("SELECT pg_advisory_lock(1)"),
    ):
        assert asyncio.run(scenario(ask))


def test_what_the_server_is_at_is_waited_for():
    async def scenario():
        async with sessions(2) as (waiting, other):
            await other.execute("SELECT pg_advisory_lock(1)")
            task = asyncio.create_task(execute(waiting, "SELECT 1 FROM pg_advisory_lock(%(key)s)", {"key": 1}))
            await blocked(other, waiting)
            watch = watching()
            waits_for_long(waiting)
            for _ in range(3):
                await watch.look()
            await other.execute("SELECT pg_advisory_unlock(1)")
            return await task

    assert asyncio.run(scenario()) == [(1,)]


def test_an_answer_that_comes_between_two_looks_tells_that_all_is_well():
    async def scenario():
        async with sessions() as connection:
            watch = watching()
            for _ in range(3):
                waits_for_long(connection)
                await watch.look()
            return await answers(connection)

    assert asyncio.run(scenario())


@pytest.mark.parametrize("is_own", [True, False])
def test_behind_a_pooler_nobody_can_tell(is_own):
    async def scenario():
        async with sessions() as connection:
            connection.is_own = is_own
            watch = watching()
            waits_for_long(connection)
            for _ in range(2):
                await watch.look()
            return await answers(connection)

    assert asyncio.run(scenario()) is not is_own


def test_it_is_known_since_when_a_connection_waits():
    async def scenario():
        async with sessions(2) as (connection, other):
            seen = [connection.asked]
            await other.execute("SELECT pg_advisory_lock(1)")
            for ask in (
                lambda: execute(connection, "SELECT pg_advisory_xact_lock(%(key)s)", {"key": 1}),
                lambda: connection.execute("SELECT pg_advisory_xact_lock(1)"),
            ):
                before = time.monotonic()
                task = asyncio.create_task(ask())
                await blocked(other, connection)
                seen.append(before < connection.asked < time.monotonic())
                await other.execute("SELECT pg_advisory_unlock(1)")
                await task
                seen.append(connection.asked)
                await other.execute("SELECT pg_advisory_lock(1)")
            with pytest.raises(psycopg.Error):
                await execute(connection, "SELECT 1 / %(by)s::integer", {"by": 0})
            seen.append(connection.asked)
            return seen

    assert asyncio.run(scenario()) == [None, True, None, True, None, None]


def test_a_copy_of_which_nothing_arrives_is_nothing_the_server_is_at():
    async def scenario():
        async with sessions() as other:
            await other.execute("CREATE TEMPORARY TABLE copied (word text)")
            async with other.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
                await copy.write("a\n")
                at_work = await watching()._at_work([other.info.backend_pid])
            return at_work

    assert asyncio.run(scenario()) == set()


def test_cancelled_tasks_end_although_the_server_does_not_answer(monkeypatch):
    """psycopg asks the server to let go of what was cancelled, and may wait for its word for ever."""

    async def waits_for_ever(self, generator, *arguments, **options):
        future = asyncio.get_running_loop().create_future()
        ended.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            again = asyncio.get_running_loop().create_future()
            ended.append(again)
            return await again

    ended = []

    async def scenario():
        async with sessions() as connection:
            monkeypatch.setattr(psycopg.AsyncConnection, "wait", waits_for_ever)
            monkeypatch.setattr(
                stalls,
                "hang_up",
                lambda connection: ended[-1].set_exception(psycopg.OperationalError("server closed the connection")),
            )
            task = asyncio.create_task(connection.execute("SELECT 1"))
            await eventually_async(lambda: ended)
            await asyncio.wait_for(stalls.end([task]), 60)
            monkeypatch.undo()
            return task.cancelled()

    assert asyncio.run(scenario())
