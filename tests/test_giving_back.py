"""Where a run stands in line when its worker has given it back."""

import asyncio

import pytest

from continuum.worker.live import RowUpdate
from tests.test_fence import commit_of, rows_of
from tests.test_leases import give_runs, node, rows, sessions

pytestmark = pytest.mark.django_db(transaction=True)

BACKLOG = (
    "INSERT INTO continuum_runs (id, workflow, correlation_id, state, priority, next_wakeup_at) "
    "SELECT gen_random_uuid(), 'flow', gen_random_uuid(), 'pending', n %% 2, now() - n * interval '1 min' "
    "FROM generate_series(1, %s) AS n"
)


def given_back(backlog, update):
    """Give one run back behind a backlog; returns how many would go before it, and how many seconds ago it is due."""

    async def scenario():
        async with sessions() as connection:
            worker = (await node(connection)).worker_id
            [run] = await give_runs(connection, worker)
            await connection.execute(BACKLOG, [backlog])
            [(token,)] = await rows(connection, "SELECT lease_token FROM continuum_runs WHERE owner_id IS NOT NULL")
            assert await rows_of(connection, *commit_of(worker, run, token, update=update)) == []
            [row] = await rows(
                connection,
                "SELECT (SELECT count(*) FROM continuum_runs AS o"
                "  WHERE o.priority = r.priority AND o.next_wakeup_at < r.next_wakeup_at),"
                " extract(epoch FROM clock_timestamp() - r.next_wakeup_at)::float8 FROM continuum_runs AS r"
                " WHERE r.id = %s AND r.owner_id IS NULL",
                run,
            )
            return row

    return asyncio.run(scenario())


def test_one_that_was_at_work_goes_before_all_that_waits_for_its_turn():
    before, age = given_back(100, RowUpdate("suspended", False, first_in_line=True))
    assert before == 0
    assert age >= 60 * 100  # as long as the first of its own priority


def test_with_nobody_in_line_it_is_due_now():
    before, age = given_back(0, RowUpdate("suspended", False, first_in_line=True))
    assert before == 0
    assert 0 <= age < 60


def test_one_that_waits_for_a_time_is_due_then():
    before, age = given_back(100, RowUpdate("suspended", False, next_wakeup_us=4_000_000_000_000_000))
    assert before == 50
    assert age < 0
