"""Searches against a plain model of them in Python, on data, conditions, orders and pages of all kinds."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from unittest.mock import patch
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import given, settings, strategies as st

import continuum
from continuum.models import Run
from continuum.search import queries as search_module

pytestmark = pytest.mark.django_db

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
MOMENTS = [MOMENT + timedelta(microseconds=n) for n in (-1, 0, 1, 200_000, 2_000_000, 60_000_000)]
WORKFLOWS = ["a.flow", "a.other", "b.flow"]
IDS = [UUID(int=7 << 76 | 0b10 << 62 | n) for n in range(1, 13)]
KEYS = ["a", "b", "0", "a.b", "", "'; DROP TABLE continuum_runs; --", "%s", "{a}"]

SCALARS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**70,
    1.0,
    1.5,
    -0.5,
    1e300,
    "",
    "0",
    "1",
    "true",
    "null",
    "a",
    "ab",
    "'",
    '"',
    "\\",
    "é",
]
COMPARISONS = ["eq", "neq", "lt", "lte", "gt", "gte"]
FIELDS = ["id", "run_id", "state", "workflow", "version", "started_at", "completed_at"]
# Those that searches go different ways for come more often.
OFTEN = [*FIELDS, "state", "workflow", "started_at", "completed_at", "state", "started_at"]


class Source(random.Random):
    """Rows and searches of all kinds. Hypothesis gives the seed: what it would make itself is too much of one kind."""

    def value(self, depth=2):
        dice = self.random()
        if depth and dice < 0.15:
            return [self.value(depth - 1) for _ in range(self.randrange(3))]
        if depth and dice < 0.3:
            return {self.choice(KEYS): self.value(depth - 1) for _ in range(self.randrange(3))}
        return self.choice(SCALARS)

    def row(self, id_):
        return {
            "id": id_,
            "namespace": self.choice(["default", "default", "billing"]),
            "workflow": self.choice(WORKFLOWS),
            "state": self.choice([*Run.State.values, "running", "completed"]),
            "version": self.randint(1, 3),
            "started_at": self.choice(MOMENTS),
            "completed_at": self.choice([None, *MOMENTS]),
            "attributes": {self.choice(KEYS): self.value() for _ in range(self.randrange(4))},
        }

    def rows(self):
        return [self.row(id_) for id_ in self.sample(IDS, self.choice([0, 3, 6, 9, 11, 12]))]

    def operand(self, field, rows):
        value = self.choice(rows)[field] if rows and self.random() < 0.7 else self.row(self.choice(IDS))[field]
        return self.operand(field, rows) if value is None else value

    def condition(self, rows):
        if self.random() < 0.4:
            return self.condition_of_path(rows)
        field = self.choice(OFTEN)
        operators = [*COMPARISONS, "in", "eq", "in"] + (["startswith"] if field in ("state", "workflow") else [])
        operator = self.choice(operators)
        if operator == "startswith":
            return (operator, field, self.choice(["", "a", "a.", "b.flow", "s", "c", "%", "_", "b' OR true --"]))
        column, form = ("id", str) if field == "run_id" else (field, lambda value: value)
        if operator == "in":
            return (operator, field, [form(self.operand(column, rows)) for _ in range(self.randrange(4))])
        return (operator, field, form(self.operand(column, rows)))

    def condition_of_path(self, rows):
        keys, value = [self.choice(KEYS) for _ in range(self.randint(1, 3))], self.value()
        if rows and self.random() < 0.7:  # what is there
            value, found = self.choice(rows)["attributes"], []
            while isinstance(value, dict) and value and (not found or self.random() < 0.7):
                found.append(self.choice(sorted(value)))
                value = value[found[-1]]
            keys = found or keys
        path, operator = ["attributes", *keys], self.choice([*COMPARISONS, "in", "exists", "eq"])
        if operator == "exists":
            return self.choice([(operator, path), (operator, path, True), (operator, path, False)])
        if operator == "in":
            return (operator, path, self.sample([value, self.value(), self.value()], self.randrange(4)))
        if operator in ("eq", "neq"):
            return (operator, path, value)
        scalar = value is not None and not isinstance(value, list | dict)
        return (operator, path, value if scalar else self.choice(SCALARS[1:]))

    def typical_search(self):
        """What people ask for, and what each way of searching is for."""
        states = self.sample(Run.State.values, self.randint(1, 3))
        workflows = self.sample(WORKFLOWS, self.randint(1, 2))
        where = [
            self.choice([("in", "state", states), ("eq", "state", states[0]), ("neq", "state", states[0])]),
            self.choice([("in", "workflow", workflows), ("eq", "workflow", workflows[0])]),
            self.choice([("gte", "started_at", MOMENTS[1]), ("lt", "version", 3), ("eq", ["attributes", "a"], 1)]),
        ]
        return {
            "namespace": self.choice(["default", "default", None]),
            "where": self.sample(where, self.choice([1, 1, 2])),
            "order_by": (self.choice(["asc", "desc"]), self.choice(["started_at", "started_at", "completed_at", "id"])),
            "per_page": self.choice([1, 1, 2, 3]),
        }

    def search(self, rows):
        if self.random() < 0.4:
            return self.typical_search()
        return {
            "namespace": self.choice([*["default"] * 6, *[None] * 3, "billing", "nowhere"]),
            "where": [self.condition(rows) for _ in range(self.choice([0, 1, 1, 1, 1, 2, 2, 3]))],
            "order_by": (self.choice(["asc", "desc"]), self.choice(OFTEN)),
            "per_page": self.choice([1, 1, 2, 2, 3, 5]),
        }


sources = st.integers(0, 2**64).map(Source)


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


@given(source=sources, limits=st.sampled_from(LIMITS))
@settings(deadline=None, max_examples=50)
def test_a_search_finds_what_the_model_finds_in_its_order(source, limits):
    rows = source.rows()
    with transaction.atomic(), patch.multiple(search_module, **limits):
        stored(rows)
        for _ in range(15):
            search = source.search(rows)
            namespace, where, (direction, field) = search["namespace"], search["where"], search["order_by"]
            expected = model(rows, namespace, where, direction, field)
            assert [run.id for run in all_pages(**search)] == expected, search
            assert continuum.count(namespace, where) == len(expected), search
            assert continuum.count(namespace, where, group_by=field) == grouped(rows, set(expected), field), search


@given(source=sources)
@settings(deadline=None, max_examples=25)
def test_querysets_mean_the_same(source):
    rows = source.rows()
    wanted = {key: value for key in source.sample(KEYS, 2) if not isinstance(value := source.value(0), list | dict)}
    with transaction.atomic():
        stored(rows)
        for bearing in ({}, wanted, *(dict([item]) for row in rows for item in row["attributes"].items())):
            if any(isinstance(value, list | dict) for value in bearing.values()):
                continue
            where = [("eq", ["attributes", key], value) for key, value in bearing.items()]
            found = Run.objects.in_namespace("default").with_attributes(**bearing)
            for runs_of, states in ((found.terminal(), Run.TERMINAL_STATES), (found.active(), ACTIVE)):
                ids = [run.id for run in all_pages("default", [*where, ("in", "state", states)], ("asc", "id"), 5)]
                assert [run.id for run in runs_of.order_by("id")] == ids


ACTIVE = [state for state in Run.State.values if state not in Run.TERMINAL_STATES]


@given(source=sources)
@settings(deadline=None, max_examples=40)
def test_runs_that_come_meanwhile_neither_repeat_nor_displace_others(source):
    rows, direction, field = source.rows(), source.choice(["asc", "desc"]), source.choice(FIELDS)
    first = source.randint(0, len(rows))
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
