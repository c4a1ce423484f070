"""The async twins: the same behaviour, without ever blocking the loop."""

import asyncio
import uuid

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

import continuum
from continuum import listening, waiting
from continuum.exceptions import AlreadyStartedError, RunFailedError, RunNotActiveError, RunNotFoundError
from continuum.models import InboxMessage, Run
from tests.ending import finish
from tests.waiting_for import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

HARDLY_EVER = 300.0

afinish = sync_to_async(finish)


@continuum.workflow(name="tests.client_async.flow")
async def flow(value): ...


@pytest.fixture(autouse=True)
async def no_connection_in_the_other_thread():
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def run():
    return await continuum.astart(flow, 1)


@pytest.fixture
def notified_only(settings, monkeypatch):
    """Let polling find nothing in time."""
    settings.CONTINUUM = {"POLL_INTERVAL": HARDLY_EVER, "LEASE_TTL": 10 * HARDLY_EVER}
    monkeypatch.setattr(waiting, "FIRST_PAUSE", HARDLY_EVER)


def waiters():
    return sum(map(len, listening._listener("default")._wakes.values()))


async def begin(call, *args, count=1):
    """Make a task of a wait; return once it waits and is sure to be notified."""
    task = asyncio.create_task(call(*args))
    await eventually_async(lambda: task.done() or (listening._listener("default").listening and waiters() >= count))
    return task


async def test_runs_are_started():
    run = await continuum.astart(flow, 1, idempotency_key="k", priority=3)
    again, created = await continuum.aget_or_start(flow, 1, idempotency_key="k")
    many = await continuum.astart_many(flow, [2, 3])
    assert (again, created) == (run, False)
    assert await continuum.aget_run(run.id) == run
    assert [each.input async for each in Run.objects.order_by("id")] == [each.input for each in (run, *many)]
    with pytest.raises(AlreadyStartedError):
        await continuum.astart(flow, 1, idempotency_key="k")


async def test_messages_are_sent(run):
    assert await continuum.asignal(run, "go", {"a": 1}, delivery_id="d1") is True
    assert await continuum.asignal(run, "go", {"a": 1}, delivery_id="d1") is False
    assert await continuum.acancel(run, reason="enough") is None
    assert [message.kind async for message in InboxMessage.objects.order_by("id")] == ["signal", "cancel"]
    await afinish(run)
    with pytest.raises(RunNotActiveError):
        await continuum.acancel(run)


@pytest.mark.usefixtures("notified_only")
async def test_a_notification_ends_the_wait(run):
    waiting_for_run = await begin(continuum.await_run, run)
    waiting_for_result = await begin(continuum.aresult, run, count=2)
    await afinish(run, result=7)
    async with asyncio.timeout(10):
        assert (await waiting_for_run).state == "completed"
        assert await waiting_for_result == 7
    assert waiters() == 0


async def test_a_failed_run_raises_what_made_it_fail(run):
    await afinish(run, "failed", error={"type": "ValueError", "message": "no"})
    with pytest.raises(RunFailedError, match="ValueError: no"):
        await continuum.aresult(run)


async def test_the_loop_is_free_while_waiting(run):
    task = await begin(continuum.await_run, run)
    turns = 0
    while turns < 100:  # would stand still
        await asyncio.sleep(0)
        turns += 1
        assert not task.done()
    assert (await continuum.aget_run(run)).state == "pending"  # so is the thread that database calls share
    await afinish(run)
    await task


async def test_many_wait_at_once():
    runs = await continuum.astart_many(flow, range(50))
    tasks = [asyncio.create_task(continuum.await_run(run, timeout=60)) for run in runs]
    await eventually_async(lambda: waiters() == 50)
    for run in runs:
        await afinish(run)
    assert await asyncio.gather(*tasks) == runs


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(run):
    task = await begin(continuum.await_run, run)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiters() == 0


async def test_a_callers_own_time_limit_is_the_callers(run):
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await continuum.await_run(run)
    assert not isinstance(caught.value, waiting.WaitTimeoutError)
    assert waiters() == 0


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_a_timeout_names_the_run_and_its_state(run, timeout):
    with pytest.raises(waiting.WaitTimeoutError, match=f"{run.id} was still pending after {timeout} seconds"):
        await continuum.aresult(run, timeout)


async def test_there_is_no_waiting_for_a_run_that_does_not_exist():
    with pytest.raises(RunNotFoundError):
        await continuum.await_run(uuid.uuid4())


async def test_a_notification_for_a_loop_that_was_closed_meanwhile_hurts_nobody():
    loop = asyncio.new_event_loop()
    wake = waiting._waker(loop, asyncio.Event())
    wake()
    loop.close()
    wake()
