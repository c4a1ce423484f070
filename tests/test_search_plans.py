"""The plans of searches, on enough runs for a bad plan to be tempting, and how much they read."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

import continuum
from benchmarks.filling import RARE_WORKFLOW, fill
from continuum import overview, statements
from continuum.admin.filters import of_workflows
from continuum.models import Run
from continuum.search import queries
from continuum.search.habits import Habits
from continuum.worker.partitions import existing_months
from continuum.worker.sql import load

RUNS = 30_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SPAN = 60 * DAY

STARTED, ENDED, COMPLETED = "continuum_runs_started_idx", "continuum_runs_ended_idx", "continuum_runs_completed_idx"
GIN, STATES, KEY = "continuum_runs_attributes_gin_idx", "continuum_runs_namespace_state_idx", "continuum_runs_pkey"


@pytest.fixture(scope="module")
def filled(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        before = set(existing_months(cursor))
        try:
            fill(cursor, RUNS, span=SPAN, until=NOW)
            yield
        finally:
            cursor.execute("TRUNCATE continuum_runs")
            for month in set(existing_months(cursor)) - before:
                cursor.execute(f"DROP TABLE {month.name}")


pytestmark = [pytest.mark.usefixtures("filled"), pytest.mark.django_db]


@pytest.fixture(autouse=True)
def no_habits(monkeypatch):
    """What other tests, of few runs, have searched for does not count: it would be gathered at once."""
    monkeypatch.setattr("continuum.search.queries.HABITS", Habits(quick=0.01))


def plans_of(search):
    """Return the plans of the statements that a search takes, as they were carried out."""
    with CaptureQueriesContext(connection) as queries:
        search()
    plans = []
    with connection.cursor() as cursor:
        for query in queries.captured_queries:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {query['sql']}")
            plan = cursor.fetchone()[0]
            plans.append((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    return plans


def nodes(plan):
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def indexes(plans):
    return {node["Index Name"] for plan in plans for node in nodes(plan) if "Index Name" in node}


def sequential(plans):
    return [node for plan in plans for node in nodes(plan) if node["Node Type"] == "Seq Scan"]


def blocks(plans):
    return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)


def attribute(key, value):
    return ("eq", ["attributes", key], value)


FLOW = "shop.workflows.order_flow"
SEARCHES = {
    "the newest": ({}, {STARTED}),
    "the oldest": ({"order_by": ("asc", "started_at")}, {STARTED}),
    "the newest of a rare namespace": ({"namespace": "audit"}, {STARTED}),
    "the newest of all namespaces": ({"namespace": None}, {STARTED}),
    "a day": ({"where": [("gte", "started_at", NOW - 9 * DAY), ("lt", "started_at", NOW - 8 * DAY)]}, {STARTED}),
    "a workflow and a state": ({"where": [("eq", "workflow", FLOW), ("eq", "state", "failed")]}, {ENDED}),
    "a rare workflow and a state": (
        {"where": [("eq", "workflow", RARE_WORKFLOW), ("eq", "state", "completed")]}, {ENDED}),
    "a rare workflow": ({"where": [("eq", "workflow", RARE_WORKFLOW)]}, {ENDED}),
    "a workflow nobody has": ({"where": [("eq", "workflow", "nobody")]}, {ENDED}),
    "some workflows": ({"where": [("in", "workflow", [FLOW, RARE_WORKFLOW]), ("eq", "state", "failed")]}, {ENDED}),
    "a rare workflow, everywhere": ({"namespace": None, "where": [("eq", "workflow", RARE_WORKFLOW)]}, {ENDED}),
    "a state": ({"where": [("eq", "state", "failed")]}, {STARTED}),
    "a state nobody is in": ({"where": [("eq", "state", "suspended")]}, {STATES}),
    "what is live": ({"where": [("in", "state", ["pending", "running", "suspended"])]}, {STATES}),
    "what runs": ({"where": [("eq", "state", "running")]}, {STATES}),
    "a common attribute": ({"where": [attribute("plan", "pro")]}, {STARTED}),
    "a rare attribute": ({"where": [attribute("flagged", True)]}, {GIN}),
    "an attribute nobody has": ({"where": [attribute("plan", "gold")]}, {GIN}),
    "an attribute of one": ({"where": [attribute("order", 4711)]}, {GIN}),
    "one of some attributes": ({"where": [("in", ["attributes", "order"], [1, 4711, 5000])]}, {GIN}),
    "a nested attribute": ({"where": [("eq", ["attributes", "address", "country"], "x7"),
                                      attribute("customer", "c77")]}, {GIN}),
    "a rare attribute, everywhere": ({"namespace": None, "where": [attribute("flagged", True)]}, {GIN}),
    "a common attribute of a rare workflow": (
        {"where": [("eq", "workflow", RARE_WORKFLOW), attribute("plan", "pro")]}, {ENDED}),
    "a rare attribute, by its end": (
        {"where": [attribute("flagged", True)], "order_by": ("desc", "completed_at")}, {GIN}),
    "the last to end": ({"order_by": ("desc", "completed_at")}, {COMPLETED}),
    "the first to end": ({"order_by": ("asc", "completed_at")}, {COMPLETED}),
    "what ended in an hour": ({"where": [("gte", "completed_at", NOW - 9 * DAY),
                                         ("lt", "completed_at", NOW - 9 * DAY + DAY / 24)]}, {COMPLETED}),
    "by id": ({"order_by": ("desc", "id")}, {KEY}),
}  # fmt: skip


@pytest.mark.parametrize(("search", "expected"), SEARCHES.values(), ids=SEARCHES)
def test_a_documented_search_reads_indexes_and_little_of_the_table(search, expected):
    plans = plans_of(lambda: continuum.query(per_page=50, **search))
    assert not sequential(plans)
    assert expected <= indexes(plans)
    assert blocks(plans) < 1_500  # a pass over the table takes about 3,000, along an index 30,000


@pytest.fixture
def kept_plans(monkeypatch):
    """Return a function that returns the plans of what a search has prepared, as sooner or later PostgreSQL keeps them.

    They are made without knowing any value.
    """
    asked = []

    def all_rows(alias, text, parameters):
        asked.append((text, parameters))
        return statements.all_rows(alias, text, parameters)

    monkeypatch.setattr(queries, "all_rows", all_rows)

    def plan(cursor, text, parameters):
        numbers = count(1)
        numbered = re.sub("%s", lambda _: f"${next(numbers)}", text)
        cursor.execute(f"PREPARE search AS {numbered}")
        given = f"({', '.join(['%s'] * len(parameters))})" if parameters else ""
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE search{given}", parameters)
        found = cursor.fetchone()[0]
        cursor.execute("DEALLOCATE search")
        return (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]

    def plans(search):
        asked.clear()
        search()
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            return [plan(cursor, *each) for each in asked]

    return plans


@pytest.mark.parametrize("search", [search for search, _ in SEARCHES.values()], ids=SEARCHES)
def test_a_search_that_is_prepared_has_the_same_plan_for_all_values(search, kept_plans):
    plans = kept_plans(lambda: continuum.query(per_page=50, **search))
    assert plans
    for plan in plans:
        assert not sequential([plan])
        assert indexes([plan]) & {STARTED, ENDED, COMPLETED, KEY, STATES}
        assert GIN not in indexes([plan])
        assert blocks([plan]) < 1_500


GATHERED = {
    "rare": {"where": [attribute("flagged", True)]},
    "of one": {"where": [attribute("order", 4711)]},
    "of nobody": {"where": [attribute("plan", "gold")]},
    "nested": {"where": [("eq", ["attributes", "address", "country"], "x7"), attribute("customer", "c77")]},
    "rare, everywhere": {"namespace": None, "where": [attribute("flagged", True)]},
    "rare, in a rare namespace": {"namespace": "audit", "where": [attribute("flagged", True)]},
    "rare, by its end": {"where": [attribute("flagged", True)], "order_by": ("desc", "completed_at")},
    "common": {"where": [attribute("plan", "pro")]},
    "common, in a rare namespace": {"namespace": "audit", "where": [attribute("plan", "pro")]},
}


@pytest.mark.parametrize("search", GATHERED.values(), ids=GATHERED)
def test_what_was_gathered_before_has_one_plan_by_the_index_of_attributes(search, kept_plans, monkeypatch):
    monkeypatch.setattr("continuum.search.queries.HABITS", Habits(quick=60.0))
    monkeypatch.setattr("continuum.search.queries._FIRST_LOOK", 1)
    monkeypatch.setattr("continuum.search.queries._PROMISING", 2)
    first = continuum.query(per_page=50, **search)
    again = []
    plan, *_ = kept_plans(lambda: again.append(continuum.query(per_page=50, **search)))
    assert again == [first]
    assert indexes([plan]) == {GIN}
    assert not sequential([plan])
    # However many runs there are, it must not be thought so dear that PostgreSQL compiles it.
    assert all(node["Plan Rows"] <= RUNS / 1_000 for node in nodes(plan))


@pytest.mark.parametrize("order_by", [("desc", "started_at"), ("desc", "completed_at"), ("asc", "id")])
def test_a_page_in_the_middle_costs_no_more_than_the_first(order_by):
    entries = list(Run.objects.in_namespace("default").order_by(order_by[1])[RUNS // 2 : RUNS // 2 + 1])
    from continuum.search import cursors

    cursor = cursors.write(*order_by, cursors.Position(getattr(entries[0], order_by[1]), entries[0].id))
    for where in ([], [attribute("plan", "pro")]):
        plans = plans_of(
            lambda where=where: continuum.query(where=where, order_by=order_by, per_page=50, cursor=cursor)
        )
        assert not sequential(plans)
        assert blocks(plans) < 500


def test_the_first_look_is_bounded_whatever_the_statistics_say():
    """As when an attribute was common, and the newest runs do not bear it any more."""
    Run.objects.filter(started_at__gt=NOW - 10 * DAY).update(attributes={})
    first, *_ = plans_of(lambda: continuum.query(where=[attribute("plan", "pro")], per_page=50))
    (scan,) = [node for node in nodes(first) if node.get("Index Name") == STARTED]
    assert scan["Actual Rows"] <= 200


def test_what_is_gathered_is_not_walked_to_in_order_whatever_the_statistics_say():
    """As when an attribute is rarer than PostgreSQL believes: it would expect to come across fifty soon."""
    some = list(Run.objects.order_by("id").values_list("id", flat=True)[::40])
    Run.objects.filter(id__in=some).update(attributes={"trap": 1})
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE continuum_runs")
    Run.objects.filter(id__in=some).update(attributes={"trap": 2})
    where = [attribute("trap", 1), ("eq", "state", "completed")]
    *_, last = plans_of(lambda: continuum.query(where=where, per_page=50))
    # Perhaps with the index of states beside it: that depends on what ANALYZE has happened to look at.
    assert GIN in indexes([last])
    assert not indexes([last]) & {STARTED, ENDED, COMPLETED}
    assert blocks([last]) < 1_500


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ([("eq", "workflow", RARE_WORKFLOW)], ENDED),
        ([("eq", "state", "failed")], STATES),
        ([attribute("flagged", True)], GIN),
        ([("gte", "completed_at", NOW - DAY / 24)], COMPLETED),
        ([("gte", "started_at", NOW - DAY / 24)], STARTED),
    ],
)
def test_counts_of_little_read_little(where, index):
    plans = plans_of(lambda: continuum.count(where=where))
    assert not sequential(plans)
    assert index in indexes(plans)


@pytest.mark.parametrize("namespace", ["default", None])
def test_a_count_by_state_counts_each_along_the_index_of_states_and_sorts_no_runs(namespace):
    (plan,) = plans_of(lambda: continuum.count(namespace, group_by="state"))
    assert STATES in indexes([plan])
    groups = [node for node in nodes(plan) if node["Node Type"] == "Aggregate" and "Group Key" in node]
    assert all(below["Actual Rows"] <= 4 * len(Run.State) for node in groups for below in node["Plans"])


def test_querysets_use_the_index_of_attributes():
    for runs in (
        Run.objects.with_attributes(flagged=True),
        Run.objects.filter(attributes__contains={"order": 4711}),
        Run.objects.in_namespace("default").terminal().with_attributes(address={"country": "x7"}, customer="c77"),
    ):
        plans = plans_of(lambda runs=runs: list(runs))
        assert not sequential(plans)
        assert GIN in indexes(plans)


def test_no_other_states_lie_between_those_of_runs_that_live():
    """As the database orders them: a stretch of the index from the first to the last of them is read."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT array_agg(s ORDER BY s) FROM unnest(%s::text[]) AS s", [list(Run.State.values)])
        (states,) = cursor.fetchone()
    live = set(Run.State) - set(Run.TERMINAL_STATES)
    first, last = states.index(min(live)), states.index(max(live))
    assert set(states[first : last + 1]) == live


@pytest.mark.parametrize(("workflow", "most"), [(FLOW, 600), ("nobody", 3_000)])
def test_the_list_of_a_workflow_reads_live_runs_past_those_that_have_ended(workflow, most):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, namespace, state)"
            " SELECT gen_random_uuid(), %s, gen_random_uuid(), CASE n %% 2 WHEN 0 THEN 'default' ELSE 'billing' END,"
            " CASE n %% 3 WHEN 0 THEN 'pending' ELSE 'suspended' END FROM generate_series(1, 10000) n",
            [FLOW],
        )
        cursor.execute("ANALYZE continuum_runs")
    plans = plans_of(lambda: of_workflows(Run.objects.all(), [workflow]))
    assert not sequential(plans)
    assert indexes(plans) <= {STATES, ENDED}
    assert blocks(plans) < most


def test_the_oldest_waits_are_found_along_the_order_of_starts():
    newest = list(Run.objects.order_by("-started_at").values_list("id", flat=True)[:4000])
    Run.objects.filter(id__in=newest[::4]).update(state="suspended", completed_at=None)
    since = min(each.oldest for each in overview.live())
    front = {"limit": 10, "front": 500, "since": since}
    with connection.cursor() as cursor:
        cursor.execute(load("overview_front"), front)
        assert len(cursor.fetchall()) == 10
    plans = plans_of(lambda: connection.cursor().execute(load("overview_front"), front))
    assert not sequential(plans)
    assert STARTED in indexes(plans)
    assert blocks(plans) < 3_000


def test_finished_runs_are_found_in_the_order_of_their_start_by_querysets_too():
    runs = Run.objects.in_namespace("default").terminal().filter(workflow=RARE_WORKFLOW, state="completed")
    plans = plans_of(lambda: list(runs.order_by("-started_at", "-id")[:50]))
    assert indexes(plans) == {ENDED}
