"""No value beyond MAX_VALUE_BYTES gets into the database, whichever way it comes: it is refused, with its path."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

import continuum
from continuum import DurableValueError, activity, continue_as_new, set_progress, side_effect, start_child, workflow
from continuum.models import ActivityTask, HistoryEvent, InboxMessage, Run
from tests.workers import run_until_idle

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 1000

called: list[int] = []


@pytest.fixture(autouse=True)
def small_limit(settings):
    settings.CONTINUUM = {"MAX_VALUE_BYTES": LIMIT}
    called.clear()


def text_of(size):
    """A string whose JSON text has ``size`` bytes."""
    return "x" * (size - 2)


@activity
def size_of(value: Any, *, named: Any = None) -> int:
    called.append(1)
    return len(value)


@activity
def make(size: int) -> str:
    called.append(1)
    return text_of(size)


@workflow
async def takes(value: Any) -> int:
    return len(value)


@workflow
async def passes(size: int) -> int:
    return await size_of({"lines": [1, text_of(size - 14)]})


@workflow
async def passes_by_name(size: int) -> int:
    return await size_of("", named=[text_of(size - 2)])


@workflow
async def passes_on_in_tasks(size: int) -> int:
    """What is refused can be caught, like any error."""
    try:
        return await size_of(text_of(size))
    except DurableValueError:
        return await size_of("small")


@workflow
async def asks_for(size: int) -> int:
    return len(await make(size))


@workflow
async def returns(size: int) -> Any:
    return {"data": text_of(size - 9)}


@workflow
async def decides(size: int) -> int:
    return len(side_effect(text_of, size))


@workflow
async def reports(size: int) -> str:
    set_progress([text_of(size - 2)])
    return "reported"


@workflow
async def has_child(size: int) -> Any:
    return await takes([text_of(size - 2)])


@workflow
async def starts_child(size: int) -> Any:
    await start_child(takes, [text_of(size - 2)])
    return "started"


@workflow
async def goes_on(size: int | None, value: Any = None) -> Any:
    if size is None:
        return len(value)
    continue_as_new(None, text_of(size))


def counts():
    return [model.objects.count() for model in (Run, HistoryEvent, InboxMessage, ActivityTask)]


def failure_of(flow, size):
    """Start a run and return its error, having seen that nothing but its failure was recorded."""
    run = continuum.start(flow, size)
    run_until_idle()
    row = continuum.get_run(run)
    assert row.state == "failed"
    # That a side effect was refused is a decision too: a replay must find it so.
    assert [event.type for event in row.history() if event.type != "side_effect"] == ["run_failed"]
    assert counts()[0] == 1
    assert counts()[2:] == [0, 0]
    assert largest_in_database() <= LIMIT
    return row.error


def largest_in_database():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT max(greatest(length(input::text), length(result::text), length(progress::text)))"
            " FROM continuum_runs"
        )
        runs = cursor.fetchone()[0]
        cursor.execute("SELECT coalesce(max(length(data::text)), 0) FROM continuum_events")
        return max(runs, cursor.fetchone()[0] - 200)  # an event says more than its value


class TestFromApplications:
    def test_the_arguments_of_a_run(self):
        continuum.start(takes, text_of(LIMIT - 2))
        before = counts()
        with pytest.raises(DurableValueError, match=r"^input: 1,001 bytes are too many: the limit is 1,000 bytes"):
            continuum.start(takes, text_of(LIMIT - 1))
        with pytest.raises(DurableValueError, match=r"^input\[0\]: a value of 1,001 bytes is not durable"):
            continuum.start(takes, {"a": text_of(LIMIT - 5)})
        assert counts() == before

    def test_a_start_with_a_key_leaves_the_key_free(self):
        with pytest.raises(DurableValueError):
            continuum.start(takes, text_of(LIMIT + 1), idempotency_key="k")
        assert continuum.get_or_start(takes, "small", idempotency_key="k")[1]

    def test_one_of_many_inputs_refuses_all(self):
        with pytest.raises(DurableValueError, match=r"^inputs\[2\]: a value of 999 bytes is not durable"):
            continuum.start_many(takes, ["a", "b", text_of(LIMIT - 1), "d"])
        assert counts() == [0, 0, 0, 0]
        continuum.start_many(takes, ["a", text_of(LIMIT - 2)])

    def test_the_payload_of_a_signal(self):
        run = continuum.start(takes, "a")
        continuum.signal(run, "go", text_of(LIMIT))
        with pytest.raises(DurableValueError, match=r"^payload: a value of 1,001 bytes is not durable"):
            continuum.signal(run, "go", text_of(LIMIT + 1), delivery_id="d")
        assert InboxMessage.objects.count() == 1
        assert continuum.signal(run, "go", "small", delivery_id="d")

    def test_the_reason_of_a_cancel(self):
        run = continuum.start(takes, "a")
        with pytest.raises(DurableValueError, match=r"^reason: "):
            continuum.cancel(run, reason="x" * LIMIT)
        assert not InboxMessage.objects.exists()

    def test_attributes(self):
        with pytest.raises(DurableValueError, match=r"^attributes: "):
            continuum.start(takes, "a", attributes={"a": "x" * LIMIT})
        assert not Run.objects.exists()


class TestFromWorkflows:
    @pytest.mark.parametrize(
        ("flow", "path"),
        [
            (passes, "tests.test_value_limits.size_of[0]"),
            (passes_by_name, "tests.test_value_limits.size_of.named"),
            (returns, "result"),
            (decides, "side_effect text_of"),
            (reports, "progress"),
            (has_child, "tests.test_value_limits.takes[0]"),
            (starts_child, "tests.test_value_limits.takes[0]"),
            (goes_on, "input[1]"),
        ],
        ids=lambda given: getattr(given, "__name__", given),
    )
    def test_what_is_too_large_fails_the_run_with_the_path(self, flow, path):
        error = failure_of(flow, LIMIT + 1)
        assert error["type"] == "DurableValueError"
        assert error["message"].startswith(f"{path}: a value of 1,001 bytes is not durable: the limit is 1,000 bytes")
        assert called == []

    @pytest.mark.parametrize(
        "flow", [passes, passes_by_name, asks_for, returns, decides, reports], ids=lambda f: f.__name__
    )
    def test_what_just_fits_goes_through(self, flow):
        run = continuum.start(flow, LIMIT)
        run_until_idle()
        assert continuum.get_run(run).state == "completed"

    def test_the_result_of_an_activity_fails_it_at_once(self):
        run = continuum.start(asks_for, LIMIT + 1)
        run_until_idle()
        events = list(continuum.get_run(run).history())
        assert [event.type for event in events] == ["activity_failed", "run_failed"]
        assert events[0].data["error"]["type"] == "DurableValueError"
        assert events[0].data["error"]["message"].startswith("result: a value of 1,001 bytes is not durable")
        assert called == [1]
        assert largest_in_database() <= LIMIT

    def test_workflow_code_may_catch_it_and_go_on(self):
        run = continuum.start(passes_on_in_tasks, LIMIT + 1)
        run_until_idle()
        assert continuum.result(run) == 5
        assert called == [1]
