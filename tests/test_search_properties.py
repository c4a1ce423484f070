"""Searches against a plain model of them in Python, on data, conditions, orders and pages of all kinds."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from unittest.mock import patch
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings, strategies as st

import continuum
from continuum import search as search_module
from continuum.models import Run

pytestmark = pytest.mark.django_db

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
MOMENTS = [MOMENT + timedelta(microseconds=n) for n in (-1, 0, 1, 200_000, 2_000_000, 60_000_000)]
NAMESPACES = ["billing", "default"]
WORKFLOWS = ["a.flow", "a.other", "b.flow"]
IDS = [UUID(int=7 << 76 | 0b10 << 62 | n) for n in range(1, 13)]
KEYS = ["a", "b", "0", "a.b", "", "'; DROP TABLE continuum_runs; --", "%s", "{a}"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**70, 1.0, 1.5, -0.5, 1e300]),
    st.sampled_from(["", "0", "1", "true", "null", "a", "ab", "b", "'", '"', "\\", "%", "é"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(KEYS), inner, max_size=2)),
    max_leaves=4,
)
attributes = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
paths = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3).map(lambda keys: ["attributes", *keys])

runs = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(NAMESPACES),
        "workflow": st.sampled_from(WORKFLOWS),
        "state": st.sampled_from(Run.State.values),
        "version": st.integers(1, 3),
        "started_at": st.sampled_from(MOMENTS),
        "completed_at": st.none() | st.sampled_from(MOMENTS),
        "attributes": attributes,
    }
)
tables = st.lists(runs, min_size=3, max_size=len(IDS)).flatmap(
    lambda rows: st.permutations(IDS[: len(rows)]).map(
        lambda ids: [row | {"id": id_} for row, id_ in zip(rows, ids, strict=True)]
    )
)

OPERANDS = {
    "id": st.sampled_from(IDS),
    "run_id": st.sampled_from(IDS).map(str),
    "state": st.sampled_from(Run.State.values),
    "workflow": st.sampled_from([*WORKFLOWS, "a", "b.flow' OR true --"]),
    "version": st.integers(0, 4) | st.just(2**80),
    "started_at": st.sampled_from(MOMENTS),
    "completed_at": st.sampled_from(MOMENTS),
}
FIELDS = list(OPERANDS)
# Those that searches go different ways for come more often.
OFTEN = [*FIELDS, "state", "workflow", "started_at", "completed_at", "state", "started_at"]
COMPARISONS = ["eq", "neq", "lt", "lte", "gt", "gte"]


@st.composite
def conditions(draw):
    if draw(st.booleans()):
        field = draw(st.sampled_from(OFTEN))
        operators = [*COMPARISONS, "in"] + (["startswith"] if field in ("state", "workflow") else [])
        operator = draw(st.sampled_from(operators))
        if operator == "in":
            return (operator, field, draw(st.lists(OPERANDS[field], max_size=3)))
        if operator == "startswith":
            return (operator, field, draw(st.sampled_from(["", "a", "a.", "b.flow", "s", "c", "%", "_"])))
        return (operator, field, draw(OPERANDS[field]))
    path = draw(paths)
    operator = draw(st.sampled_from([*COMPARISONS, "in", "exists"]))
    if operator == "exists":
        return draw(st.sampled_from([(operator, path), (operator, path, True), (operator, path, False)]))
    if operator == "in":
        return (operator, path, draw(st.lists(values, max_size=3)))
    if operator in ("eq", "neq"):
        return (operator, path, draw(values))
    return (operator, path, draw(scalars.filter(lambda value: value is not None)))


# The model


MISSING = object()


def same(one, other):
    """Whether two JSON values are the same: 1 is 1.0, and neither is true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def kind(value):
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


COMPARED = {
    "lt": lambda one, other: one < other,
    "lte": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "gte": lambda one, other: one >= other,
}


def meets(row, condition):
    operator, subject, *operands = condition
    if isinstance(subject, list):
        value = row["attributes"]
        for key in subject[1:]:
            value = value.get(key, MISSING) if isinstance(value, dict) else MISSING
        if operator == "exists":
            return (value is not MISSING) == (operands[0] if operands else True)
        equal, comparable = same, value is not MISSING and kind(value) == kind(operands[0])
    else:
        value = row["id" if subject == "run_id" else subject]
        if subject == "run_id":
            operands = [[UUID(each) for each in operands[0]] if operator == "in" else UUID(operands[0])]
        if value is None:
            return False
        equal, comparable = lambda one, other: one == other, True
    if value is MISSING:
        return False
    (operand,) = operands
    if operator == "eq":
        return equal(value, operand)
    if operator == "neq":
        return not equal(value, operand)
    if operator == "in":
        return any(equal(value, each) for each in operand)
    if operator == "startswith":
        return value.startswith(operand)
    return comparable and COMPARED[operator](value, operand)


def model(rows, namespace, where, direction, field):
    found = [
        row
        for row in rows
        if (namespace is None or row["namespace"] == namespace) and all(meets(row, each) for each in where)
    ]
    column = "id" if field == "run_id" else field
    with_value = [row for row in found if row[column] is not None]
    without = [row for row in found if row[column] is None]
    with_value.sort(key=lambda row: (row[column], row["id"]), reverse=direction == "desc")
    without.sort(key=lambda row: row["id"], reverse=direction == "desc")
    return [row["id"] for row in (*with_value, *without)]


def grouped(rows, ids, group_by):
    counter = Counter()
    for row in rows:
        if row["id"] in ids:
            value = row["id" if group_by == "run_id" else group_by]
            counter[value] += 1
    return dict(counter)


# What is held against it


def stored(rows):
    Run.objects.all().delete()
    Run.objects.bulk_create(Run(correlation_id=row["id"], **row) for row in rows)


def all_pages(namespace, where, order_by, per_page):
    cursor, entries = None, []
    while True:
        page = continuum.query(namespace, where, order_by, per_page, cursor)
        assert len(page.entries) == page.per_page or page.next_cursor is None
        assert page.entries or cursor is None
        entries += page.entries
        cursor = page.next_cursor
        if cursor is None:
            return entries


# Searches go their ways by the size of the tables. These limits make them go each of them on small ones.
LIMITS = [
    {"_FIRST_LOOK": 200},
    {"_FIRST_LOOK": 2, "_PROMISING": 1},
    {"_FIRST_LOOK": 1, "_LONGEST_LOOK": 1, "_MOST_WORKFLOWS": 0},
]


searches = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from([None, *NAMESPACES, "nowhere"]),
        "where": st.lists(conditions(), max_size=3),
        "order_by": st.tuples(st.sampled_from(["asc", "desc"]), st.sampled_from(OFTEN)),
        "per_page": st.integers(1, 5),
    }
)


@given(rows=tables, some=st.lists(searches, min_size=8, max_size=8), limits=st.sampled_from(LIMITS))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_search_finds_what_the_model_finds_in_its_order(rows, some, limits):
    with transaction.atomic(), patch.multiple(search_module, **limits):
        stored(rows)
        for search in some:
            namespace, where, (direction, field) = search["namespace"], search["where"], search["order_by"]
            expected = model(rows, namespace, where, direction, field)
            assert [run.id for run in all_pages(**search)] == expected
            assert continuum.count(namespace, where) == len(expected)
            assert continuum.count(namespace, where, group_by=field) == grouped(rows, set(expected), field)


@given(rows=tables, wanted=attributes.filter(lambda value: not any(isinstance(v, dict | list) for v in value.values())))
@settings(deadline=None, max_examples=30)
def test_querysets_mean_the_same(rows, wanted):
    with transaction.atomic():
        stored(rows)
        where = [("eq", ["attributes", key], value) for key, value in wanted.items()]
        found = Run.objects.in_namespace("default").with_attributes(**wanted)
        for runs_of, states in ((found.terminal(), Run.TERMINAL_STATES), (found.active(), ACTIVE)):
            ids = [run.id for run in all_pages("default", [*where, ("in", "state", states)], ("asc", "id"), 5)]
            assert [run.id for run in runs_of.order_by("id")] == ids


ACTIVE = [state for state in Run.State.values if state not in Run.TERMINAL_STATES]


@given(rows=tables, field=st.sampled_from(FIELDS), direction=st.sampled_from(["asc", "desc"]), data=st.data())
@settings(deadline=None, max_examples=30)
def test_runs_that_come_meanwhile_neither_repeat_nor_displace_others(rows, field, direction, data):
    first = data.draw(st.integers(0, len(rows)))
    with transaction.atomic():
        stored(rows[:first])
        page = continuum.query(None, (), (direction, field), 2)
        seen = [run.id for run in page.entries]
        late = rows[first:]
        while page.next_cursor is not None:
            if late:
                row = late.pop()
                Run.objects.create(correlation_id=row["id"], **row)
            page = continuum.query(None, (), (direction, field), 2, page.next_cursor)
            seen += [run.id for run in page.entries]
        places = {id_: place for place, id_ in enumerate(model(rows, None, (), direction, field))}
        assert all(places[one] < places[other] for one, other in pairwise(seen))
        assert {row["id"] for row in rows[:first]} <= set(seen)
