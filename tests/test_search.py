"""Searches as people write them: what finds what, what is refused, and how cursors behave."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from django.core import signing
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

import continuum
from continuum import InvalidQueryError
from continuum.models import Run
from continuum.search import rows
from continuum.search.groups import expression
from continuum.search.habits import Habits
from continuum.search.queries import _query
from continuum.search.statements import Text, counted, ended_in_order, gathered, in_order
from tests.factories import RunFactory

pytestmark = pytest.mark.django_db

NOW = datetime.now(UTC).replace(microsecond=0)
PLAN = ["attributes", "plan"]


def found(*where, **options):
    return set(continuum.query(where=list(where), **options).entries)


def forget_zone():
    connection.close()
    for name in ("timezone", "timezone_name"):
        connection.__dict__.pop(name, None)


def holding(value):
    return RunFactory(attributes={"value": value})


VALUE = ["attributes", "value"]


def read_or_refused(read):
    try:
        read()
    except ValueError as refused:
        return str(refused)
    return "read"


class TestPage:
    def test_the_newest_of_the_default_namespace_come_first(self):
        old, new = RunFactory(started_at=NOW - timedelta(hours=1)), RunFactory(started_at=NOW)
        RunFactory(namespace="billing")
        page = continuum.query()
        assert (page.entries, page.next_cursor, page.per_page) == ([new, old], None, 25)

    def test_none_is_every_namespace(self):
        runs = {RunFactory(), RunFactory(namespace="billing")}
        assert found(namespace=None) == runs

    def test_entries_are_what_the_model_would_read(self):
        run = RunFactory(
            input=[{"price": Decimal("9.50")}], result=b"\x00", error={"type": "E"}, progress=[1], waiting_on=[1],
            attributes={"n": 1.5, "deep": {"x": [None]}}, completed_at=NOW, started_at=NOW - timedelta(microseconds=1),
        )  # fmt: skip
        (entry,) = continuum.query().entries
        stored = Run.objects.get(pk=run.pk)
        for field in Run._meta.concrete_fields:
            value = getattr(entry, field.attname)
            assert value == getattr(stored, field.attname)
            assert type(value) is type(getattr(stored, field.attname))
        assert entry.started_at.tzinfo == stored.started_at.tzinfo
        entry.version = 2
        entry.save()
        assert Run.objects.get(pk=run.pk).version == 2

    @pytest.mark.parametrize("most_at_once", [1_000_000, 10])
    def test_values_of_a_page_do_not_mix(self, most_at_once, monkeypatch):
        """They are read together, those that are tagged and those that are not, where there are any at all."""
        monkeypatch.setattr(rows, "_MOST_AT_ONCE", most_at_once)
        shapes = [
            {"input": [Decimal("9.50")], "result": {"a": [1]}, "attributes": {"n": 1}},
            {"input": [{"a": "],["}], "error": {"type": "E"}, "attributes": {"n": [[]]}},
            {"input": [], "result": "\u2028,", "progress": 0.5, "attributes": {}},
            {"input": ["~", {"a": None}], "result": [], "completed_at": NOW},
        ]
        for shape in shapes:
            RunFactory(**shape)
        entries = continuum.query().entries
        stored = Run.objects.in_bulk()
        assert len(entries) == len(shapes)
        for entry in entries:
            for field in Run._meta.concrete_fields:
                assert getattr(entry, field.attname) == getattr(stored[entry.pk], field.attname)
                assert type(getattr(entry, field.attname)) is type(getattr(stored[entry.pk], field.attname))
        with_lists = [entry for entry in entries if entry.input == []]
        with_lists[0].input.append(1)  # nobody else's
        assert continuum.query().entries[entries.index(with_lists[0])].input == []

    @pytest.mark.parametrize(
        "value", ['{"~nothing": 1}', "1" * 5000, "[" * 3000 + "]" * 3000], ids=["tag", "long", "deep"]
    )
    def test_a_value_that_cannot_be_read_is_named_as_the_model_would(self, value):
        RunFactory.create_batch(2)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE continuum_runs SET result = %s", [value])
        by_model = read_or_refused(Run.objects.first)
        assert read_or_refused(lambda: continuum.query().entries[0]) == by_model
        if value[0] != "[":  # how deep Python reads depends on its version
            assert by_model != "read"

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(("use_tz", "zone"), [(True, None), (True, "Europe/Oslo"), (False, None)])
    def test_moments_are_in_the_zone_that_the_model_has_them_in(self, use_tz, zone, settings, monkeypatch):
        RunFactory(started_at=NOW)
        forget_zone()
        with monkeypatch.context() as patch:
            settings.USE_TZ = use_tz
            patch.setitem(connection.settings_dict, "TIME_ZONE", zone)
            ((entry,), stored) = continuum.query().entries, Run.objects.get()
            assert entry.started_at == stored.started_at
            assert entry.started_at.utcoffset() == stored.started_at.utcoffset()
        forget_zone()

    def test_per_page_has_a_cap(self):
        Run.objects.bulk_create(Run(workflow="f", correlation_id=uuid4()) for _ in range(101))
        page = continuum.query(per_page=1000)
        assert (len(page.entries), page.per_page) == (100, 100)
        assert len(continuum.query(per_page=1000, cursor=page.next_cursor).entries) == 1

    def test_a_page_that_is_just_full_is_the_last(self):
        RunFactory.create_batch(2)
        assert continuum.query(per_page=2).next_cursor is None

    def test_runs_without_a_value_come_last_in_either_direction(self):
        alive, other = RunFactory(), RunFactory()
        early, late = (RunFactory(state="completed", completed_at=NOW + timedelta(seconds=n)) for n in range(2))
        for direction, expected in (("asc", [early, late, alive, other]), ("desc", [late, early, other, alive])):
            page, entries = continuum.query(order_by=(direction, "completed_at"), per_page=1), []
            entries += page.entries
            while page.next_cursor:
                page = continuum.query(order_by=(direction, "completed_at"), per_page=1, cursor=page.next_cursor)
                entries += page.entries
            assert entries == expected

    def test_a_page_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            continuum.query().per_page = 1

    def test_what_comes_meanwhile_neither_repeats_nor_hides_a_run(self):
        first, second, third = (RunFactory(started_at=NOW - timedelta(minutes=n)) for n in range(3))
        page = continuum.query(per_page=2)
        RunFactory(started_at=NOW + timedelta(minutes=1))
        Run.objects.filter(id=second.id).delete()
        rest = continuum.query(per_page=2, cursor=page.next_cursor)
        assert (page.entries, rest.entries) == ([first, second], [third])

    def test_another_database_can_be_named(self):
        with pytest.raises(Exception, match="elsewhere"):
            continuum.query(using="elsewhere")


class TestWays:
    """Some limits decide which way a search goes; the property tests go them all, and these what is rare there."""

    def test_a_first_look_takes_the_order_of_all_runs_not_that_of_those_that_run(self, monkeypatch):
        monkeypatch.setattr("continuum.search.queries._FIRST_LOOK", 3)
        kinds = [("completed", 1), ("completed", 2), ("completed", 2), ("completed", 1), ("running", 1), ("running", 1)]
        runs = [
            RunFactory(started_at=NOW - timedelta(seconds=age), state=state, version=version)
            for age, (state, version) in enumerate(kinds)
        ]
        page = continuum.query(where=[("eq", "version", 1)], per_page=2)
        assert page.entries == [runs[0], runs[3]]

    def test_live_runs_of_a_workflow_come_among_the_ended(self, monkeypatch):
        monkeypatch.setattr("continuum.search.queries._FIRST_LOOK", 1)
        states = {3: "suspended", 2: "completed", 1: "pending"}
        runs = [RunFactory(started_at=NOW + timedelta(seconds=n), state=state) for n, state in states.items()]
        RunFactory(workflow="another", started_at=NOW + timedelta(seconds=4))
        assert continuum.query(where=[("eq", "workflow", "shop.order_flow")]).entries == runs

    def test_conditions_on_the_workflow_have_to_be_met_together(self):
        ours = RunFactory(workflow="a", state="completed")
        RunFactory(workflow="b", state="completed")
        where = [("eq", "state", "completed"), ("eq", "workflow", "a"), ("in", "workflow", ["a", "b"])]
        assert found(*where) == {ours}


class TestHabits:
    @pytest.fixture
    def clock(self, monkeypatch):
        clock = SimpleNamespace(now=0.0, took=0.0)

        def tell():
            clock.now += clock.took
            return clock.now

        monkeypatch.setattr("continuum.search.queries.HABITS", Habits(1.0, most=4, clock=tell))
        return clock

    def rare(self, value="x", **options):
        with CaptureQueriesContext(connection) as queries:
            page = continuum.query(where=[("eq", VALUE, value)], per_page=1, **options)
        return len(queries), page

    def test_what_was_gathered_quickly_is_gathered_at_once_the_next_time(self, clock):
        one, other = sorted([holding("x"), holding("x")], key=lambda run: run.started_at)
        RunFactory.create_batch(2, attributes={"value": "y"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("continuum.search.queries._FIRST_LOOK", 1)
            assert [self.rare()[0] for _ in range(3)] == [2, 1, 1]
            _, page = self.rare()
            queries, rest = self.rare(cursor=page.next_cursor)
        assert (queries, page.entries, rest.entries) == (1, [other], [one])

    def test_what_has_come_to_take_long_is_looked_for_in_order_again(self, clock):
        assert self.rare()[0] == 2
        clock.took = 2.0
        assert [self.rare()[0] for _ in range(3)] == [1, 2, 2]

    def test_the_index_of_attributes_is_left_to_postgresql_once_it_took_long_time_and_again(self, clock):
        """As where a namespace has few runs, and all others bear the attribute."""
        RunFactory(attributes={"value": "x"}, namespace="other")

        def is_told_which_index():
            with CaptureQueriesContext(connection) as queries:
                continuum.query(where=[("eq", VALUE, "x")])
            return ["attributes @> (SELECT" in query["sql"] for query in queries]

        for _ in range(3):
            clock.took = 0.0
            assert is_told_which_index() == [False, False]
            clock.took = 2.0
            assert is_told_which_index() == [True]
        clock.took = 0.0
        assert [is_told_which_index() for _ in range(3)] == [[False, False], [False], [False]]

    def test_what_took_long_by_chance_keeps_its_plan(self, clock):
        RunFactory(attributes={"value": "x"})
        RunFactory(attributes={"value": "y"})
        self.rare("z")
        for took in (2.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0, 0.0):
            clock.took = took
            if self.rare("z")[0] == 2:  # it was looked for in order, and gathered as PostgreSQL sees fit
                clock.took = 0.0
                self.rare("z")
        clock.took = 0.0
        with CaptureQueriesContext(connection) as queries:
            self.rare("z")
        assert ["attributes @> (SELECT" in query["sql"] for query in queries] == [True]

    @pytest.mark.parametrize(
        "condition",
        [
            ("eq", VALUE, ["x"]),
            ("eq", VALUE, {"x": 1}),
            ("eq", VALUE, None),
            ("eq", VALUE, {}),
            ("in", VALUE, ["x", 1]),
            ("in", VALUE, ["x"]),
            ("gte", VALUE, 1),
            ("exists", VALUE),
        ],
    )
    def test_what_is_gathered_again_is_what_was_found(self, clock, condition):
        for value in ("x", 1, ["x"], ["x", "y"], {"x": 1}, {"x": 1, "y": 2}, None, {}):
            RunFactory(attributes={"value": value, "plan": "pro"})
            holding(value)
        for conditions in ([condition], [condition, ("eq", PLAN, "free")], [("eq", PLAN, "pro"), condition]):
            first = continuum.query(where=conditions)
            assert all(continuum.query(where=conditions) == first for _ in range(2))

    def test_what_is_common_is_found_in_order_all_along(self, clock):
        RunFactory.create_batch(3, attributes={"value": "x"})
        assert [self.rare()[0] for _ in range(3)] == [1, 1, 1]

    def test_a_search_of_another_order_is_another(self, clock):
        self.rare()
        assert self.rare(order_by=("asc", "started_at"))[0] == 2

    def test_no_more_than_a_number_of_them_is_remembered(self, clock):
        for value in ("a", "b", "c", "d", "e"):
            self.rare(value)
        assert [self.rare(value)[0] for value in ("e", "a")] == [1, 2]


class TestFields:
    def test_ids_are_uuids_strings_or_runs(self):
        run, other = RunFactory(), RunFactory()
        assert found(("eq", "id", run.id)) == found(("eq", "run_id", str(run.id))) == found(("eq", "id", run)) == {run}
        assert found(("in", "id", [str(run.id), other.id])) == {run, other}
        assert found(("gt", "id", min(run.id, other.id))) == {max(run, other, key=lambda each: each.id)}

    def test_workflows_and_states_by_their_beginning(self):
        ours = RunFactory(workflow="shop.order", state="completed")
        RunFactory(workflow="Shop.order", state="cancelled")
        RunFactory(workflow="sho%.order", state="failed")
        assert found(("startswith", "workflow", "shop")) == {ours}
        assert found(("startswith", "state", "com")) == {ours}
        assert not found(("startswith", "workflow", "sho_"))

    def test_moments_count_to_the_microsecond_in_any_zone(self):
        run = RunFactory(started_at=NOW + timedelta(microseconds=1))
        moment = run.started_at.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert found(("eq", "started_at", moment)) == {run}
        assert not found(("lte", "started_at", NOW))

    def test_a_run_that_has_not_ended_completed_neither_before_nor_after_nor_at_another_time(self):
        RunFactory()
        for operator in ("eq", "neq", "lt", "gte"):
            assert not found((operator, "completed_at", NOW))

    def test_every_condition_has_to_be_met(self):
        run = RunFactory(state="failed", attributes={"plan": "pro"})
        RunFactory(state="failed")
        RunFactory(attributes={"plan": "pro"})
        assert found(("eq", "state", Run.State.FAILED), ("eq", PLAN, "pro")) == {run}
        assert not found(("eq", "state", "failed"), ("eq", "state", "completed"))

    def test_in_nothing_is_nothing(self):
        run = RunFactory(attributes={"value": 1})
        assert not found(("in", "state", [])) | found(("in", VALUE, [])) | found(("in", "id", ()))
        assert found(("in", "state", {"pending"})) == {run}


class TestAttributes:
    def test_values_keep_their_json_types(self):
        runs = {repr(value): holding(value) for value in (1, "1", True, None, "true", "null", [1], {"1": 1})}
        for value in (1, "1", True, None, [1], {"1": 1}):
            assert found(("eq", VALUE, value)) == found(("in", VALUE, [value])) == {runs[repr(value)]}
        assert found(("in", VALUE, [1, "1", 7])) == {runs["1"], runs["'1'"]}

    def test_numbers_are_numbers_whole_or_not(self):
        run = holding(1)
        assert found(("eq", VALUE, 1.0)) == {run}
        assert found(("gte", VALUE, 1.0), ("lt", VALUE, 1.5)) == {run}

    def test_lists_and_objects_equal_only_themselves(self):
        run = holding({"a": [1, 2], "b": {}})
        assert found(("eq", VALUE, {"b": {}, "a": [1, 2]})) == {run}
        for other in ({"a": [1, 2]}, {"a": [2, 1], "b": {}}, {"a": [1], "b": {}}, {}, []):
            assert not found(("eq", VALUE, other))
            assert found(("neq", VALUE, other)) == {run}
        empty = holding([])
        assert found(("eq", VALUE, [])) == {empty}

    def test_a_path_leads_through_objects_only(self):
        run = RunFactory(attributes={"items": ["x"], "a.b": {"0": "x"}, "": {"": 1}})
        assert found(("eq", ["attributes", "a.b", "0"], "x")) == {run}
        assert found(("exists", ["attributes", "a.b", "0"])) == found(("gt", ("attributes", "", ""), 0)) == {run}
        for operator in ("eq", "neq", "gte"):
            assert not found((operator, ["attributes", "items", "0"], "x"))
            assert not found((operator, ["attributes", "a", "b", "0"], "x"))
        assert not found(("exists", ["attributes", "items", "0"]))

    def test_exists_tells_null_from_nothing(self):
        null, nothing = holding(None), RunFactory()
        assert found(("exists", VALUE)) == found(("exists", VALUE, True)) == {null}
        assert found(("exists", VALUE, False)) == {nothing}
        assert found(("eq", VALUE, None)) == {null}

    def test_neq_is_about_attributes_that_are_there(self):
        pro, number, null = holding("pro"), holding(1), holding(None)
        RunFactory()
        assert found(("neq", VALUE, "pro")) == {number, null}
        assert found(("neq", VALUE, None)) == {pro, number}

    def test_what_is_of_another_type_is_neither_more_nor_less(self):
        two, text, yes = holding(2), holding("10"), holding(True)
        holding(None), holding([3]), holding({"a": 3})
        assert found(("gt", VALUE, 1)) == found(("lt", VALUE, 10.5)) == {two}
        assert found(("gt", VALUE, "1")) == found(("lte", VALUE, "10")) == {text}
        assert found(("gt", VALUE, False)) == found(("gte", VALUE, True)) == {yes}


REFUSED = [
    (("eq", "nonsense", 1), r"^where\[1\]: 'nonsense' is not one of id, run_id, state"),
    (("eq", "attributes", {}), r"^where\[1\]: 'attributes' is not one of .* a path such as \['attributes', 'plan'\]"),
    (("eq", "attributes.plan", "x"), r"^where\[1\]: .* a path such as"),
    (("eq", "namespace", "x"), r"^where\[1\]: 'namespace'"),
    (("eq", ["attributes"], 1), r"^where\[1\]: a path is a list such as"),
    (("eq", ["plan"], 1), r"^where\[1\]: a path is"),
    (("eq", ["input", "plan"], 1), r"^where\[1\]: a path is"),
    (("eq", ["attributes", 0], 1), r"^where\[1\]: the keys of a path are strings, not 0"),
    (("eq", ["attributes", "\x00"], 1), r"^where\[1\]: no attribute has NUL"),
    (("eq", ["attributes", *"a" * 200], 1), r"^where\[1\]: attributes are not nested deeper"),
    (("like", "state", "x"), r"^where\[1\]: state does not take 'like', but eq, neq, lt, lte, gt, gte, in, startswith"),
    (("startswith", "id", "x"), r"^where\[1\]: id does not take 'startswith'"),
    (("startswith", PLAN, "x"), r"^where\[1\]: a path does not take 'startswith'"),
    (("exists", "state"), r"^where\[1\]: state does not take 'exists'"),
    (("exists", PLAN, 1), r"^where\[1\]: exists takes True or False, or nothing, not 1"),
    (("eq", "state"), r"^where\[1\]: eq needs an operand"),
    (("eq", "state", "failed", 1), r"^where\[1\]: a condition is"),
    ("state", r"^where\[1\]: a condition is"),
    (None, r"^where\[1\]: a condition is"),
    ((None, "state", "x"), r"^where\[1\]: a condition is"),
    (("eq", None, "x"), r"^where\[1\]: None is not one of"),
    (("eq", "state", "done"), r"^where\[1\]: state is one of pending, .* not 'done'"),
    (("eq", "state", None), r"^where\[1\]: state is compared with a string, not with None"),
    (("in", "state", "failed"), r"^where\[1\]: in takes a list of values, not 'failed'"),
    (("in", "state", ["failed", 7]), r"^where\[1\]: state is compared with a string, not with 7"),
    (("in", PLAN, [*range(1001)]), r"^where\[1\]: in takes up to 1,000 values, not 1,001"),
    (("eq", "workflow", "a\x00"), r"^where\[1\]: workflow holds neither NUL"),
    (("eq", "version", True), r"^where\[1\]: version is compared with an int, not with True"),
    (("eq", "version", "1"), r"^where\[1\]: version is compared with an int"),
    (("eq", "id", "x"), r"^where\[1\]: id is compared with a UUID or its string, not with 'x'"),
    (("eq", "run_id", 7), r"^where\[1\]: run_id is compared with a UUID"),
    (("gt", "started_at", datetime(2026, 1, 1)), r"^where\[1\]: started_at is compared with an aware datetime, not"),
    (("gt", "started_at", date(2026, 1, 1)), r"^where\[1\]: started_at is compared with an aware datetime"),
    (("gt", "completed_at", "2026-01-01"), r"^where\[1\]: completed_at is compared with an aware datetime"),
    (("gt", "started_at", datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))), r"^where\[1\]: .*out of range"),
    (("eq", PLAN, NOW), r"^where\[1\]: attributes: attributes hold plain JSON values only, not datetime"),
    (("eq", PLAN, Decimal("1")), r"^where\[1\]: attributes: attributes hold plain JSON values only, not Decimal"),
    (("eq", PLAN, uuid4()), r"^where\[1\]: attributes: .*plain JSON values only, not UUID"),
    (("eq", PLAN, (1, 2)), r"^where\[1\]: attributes: .*plain JSON values only"),
    (("neq", PLAN, float("nan")), r"^where\[1\]: attributes: .*nan"),
    (("in", PLAN, [1, "\x00"]), r"^where\[1\]: attributes: .*NUL"),
    (("eq", PLAN, 10**5000), r"^where\[1\]: attributes: "),
    (("lt", PLAN, None), r"^where\[1\]: lt compares numbers, strings or booleans, not None"),
    (("gte", PLAN, [1]), r"^where\[1\]: gte compares numbers, strings or booleans, not \[1\]"),
]


class TestRefusals:
    @pytest.mark.parametrize(("condition", "message"), REFUSED, ids=range(len(REFUSED)))
    def test_a_condition_that_cannot_be_asked_is_named(self, condition, message, django_assert_num_queries):
        where = [("eq", "state", "failed"), condition]
        for search in (continuum.query, continuum.count):
            with django_assert_num_queries(0), pytest.raises(InvalidQueryError, match=message):
                search(where=where)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"where": "state"}, "^where must be a list of conditions"),
            ({"where": {"state": "failed"}}, "^where must be a list of conditions"),
            ({"where": None}, "^where must be a list of conditions"),
            ({"order_by": "started_at"}, "^order_by must be a pair"),
            ({"order_by": ("started_at", "desc")}, "^order_by: the direction must be 'asc' or 'desc'"),
            ({"order_by": ("desc", "id; DROP TABLE continuum_runs")}, "^order_by: .* is not one of"),
            ({"order_by": ("desc", PLAN)}, "^order_by: .* is not one of"),
            ({"order_by": ("desc", "input")}, "^order_by: 'input' is not one of"),
            ({"order_by": (["desc"], "id")}, "^order_by: the direction"),
            ({"per_page": 0}, "^per_page must be an int of at least 1, not 0"),
            ({"per_page": True}, "^per_page"),
            ({"per_page": "10"}, "^per_page"),
            ({"cursor": 7}, "^cursor must be the next_cursor of a page"),
            ({"cursor": ""}, "^cursor is not one that a page has given out"),
            ({"cursor": "\ud800"}, "^cursor is not one that a page has given out"),
        ],
    )
    def test_what_else_is_wrong_is_named(self, options, message, django_assert_num_queries):
        with django_assert_num_queries(0), pytest.raises(InvalidQueryError, match=message):
            continuum.query(**options)

    @pytest.mark.parametrize("group_by", ["input", ["attributes"], ["input", "x"], 7, ["attributes", 1]])
    def test_what_a_count_cannot_be_grouped_by_is_named(self, group_by):
        with pytest.raises(InvalidQueryError, match=r"^group_by: "):
            continuum.count(group_by=group_by)

    def test_a_namespace_is_refused_as_elsewhere(self):
        with pytest.raises(ValueError, match="namespace"):
            continuum.query(namespace="")
        with pytest.raises(TypeError, match="namespace"):
            continuum.count(namespace=7)

    def test_the_error_is_a_value_error_of_ours(self):
        assert issubclass(InvalidQueryError, ValueError)
        assert issubclass(InvalidQueryError, continuum.ContinuumError)


class TestCursors:
    @pytest.fixture
    def cursor(self):
        RunFactory.create_batch(3)
        return continuum.query(per_page=1).next_cursor

    def test_is_bound_to_its_order(self, cursor):
        for order_by in (("asc", "started_at"), ("desc", "completed_at"), ("desc", "id")):
            with pytest.raises(InvalidQueryError, match="cursor belongs to the order"):
                continuum.query(order_by=order_by, cursor=cursor)

    def test_two_names_of_one_field_are_one_order(self):
        RunFactory.create_batch(2)
        cursor = continuum.query(order_by=("asc", "id"), per_page=1).next_cursor
        assert len(continuum.query(order_by=("asc", "run_id"), per_page=1, cursor=cursor).entries) == 1

    def test_holds_whatever_is_asked_for_and_however_long_the_page(self, cursor):
        since = NOW - timedelta(days=1)
        page = continuum.query(where=[("gte", "started_at", since)], per_page=7, cursor=cursor)
        assert len(page.entries) == 2

    def test_a_changed_one_is_refused(self, cursor):
        for place in range(0, len(cursor), 7):
            other = "A" if cursor[place] != "A" else "B"
            with pytest.raises(InvalidQueryError, match=r"^cursor"):
                continuum.query(cursor=cursor[:place] + other + cursor[place + 1 :])

    def test_one_signed_elsewhere_is_refused(self, cursor, settings):
        forged = signing.dumps(["desc", "started_at", NOW.isoformat(), str(uuid4())])
        with pytest.raises(InvalidQueryError):
            continuum.query(cursor=forged)
        settings.SECRET_KEY = "another"
        with pytest.raises(InvalidQueryError):
            continuum.query(cursor=cursor)
        settings.SECRET_KEY_FALLBACKS = ["for tests only"]
        assert continuum.query(cursor=cursor).entries


class TestCount:
    def test_counts_what_a_search_finds(self):
        RunFactory.create_batch(2, state="failed")
        RunFactory(namespace="billing", state="failed")
        RunFactory()
        where = [("eq", "state", "failed")]
        assert continuum.count() == 3
        assert continuum.count(where=where) == 2
        assert continuum.count(namespace=None, where=where) == 3
        assert continuum.count("nowhere") == 0

    def test_by_a_field(self):
        runs = [RunFactory(state="failed", version=2), RunFactory(completed_at=NOW), RunFactory()]
        assert continuum.count(group_by="state") == {"failed": 1, "pending": 2}
        assert continuum.count(group_by="version") == {2: 1, 1: 2}
        assert continuum.count(group_by="completed_at") == {NOW: 1, None: 2}
        assert continuum.count(group_by="run_id") == {run.id: 1 for run in runs}
        assert continuum.count(where=[("in", "state", [])], group_by="state") == {}

    def test_by_an_attribute(self):
        for value in ("a", "a", 1, 1.0, 2.5, "1", None, [1, {"x": []}], {"a": [1]}):
            holding(value)
        RunFactory()
        assert continuum.count(group_by=VALUE) == {
            "a": 2, 1: 2, 2.5: 1, "1": 1, None: 2, (1, (("x", ()),)): 1, (("a", (1,)),): 1,
        }  # fmt: skip
        assert continuum.count(group_by=["attributes", "value", "a"]) == {None: 9, (1,): 1}

    @pytest.mark.parametrize(
        "where",
        [
            [],
            [("in", "state", ["failed", "running", "pending"])],
            [("neq", "state", "failed"), ("startswith", "state", "c")],
            [("lt", "state", "failed")],
            [("eq", "state", "failed"), ("eq", "state", "completed")],
            [("eq", "state", "failed"), ("eq", "workflow", "b")],
            [("gte", "id", UUID(int=0))],
            [("neq", "id", UUID(int=0))],
        ],
    )
    def test_counts_by_state_what_a_search_finds_in_each(self, where):
        for number, state in enumerate(["completed", "failed", "running", "cancelled", "failed", "failed"]):
            RunFactory(state=state, workflow="ab"[number % 2], namespace=("default", "other")[number // 3])
        for namespace in ("default", "other", None, "nowhere"):
            found = continuum.query(namespace, where).entries
            expected = dict(Counter(run.state for run in found))
            assert continuum.count(namespace, where, group_by="state") == expected

    def test_what_is_one_key_in_python_is_counted_together(self):
        holding(1), holding(True), holding(0), holding(False)
        assert continuum.count(group_by=VALUE) == {1: 2, 0: 2}


@pytest.mark.django_db(transaction=True)
class TestTwins:
    @pytest.fixture(autouse=True)
    async def no_connection_in_the_other_thread(self):
        yield
        await sync_to_async(connections.close_all)()

    async def test_do_the_same(self):
        runs = await sync_to_async(RunFactory.create_batch)(3, state="failed", attributes={"plan": "pro"})
        where = [("eq", PLAN, "pro")]
        page = await continuum.aquery("default", where, ("asc", "id"), 2)
        rest = await continuum.aquery("default", where, ("asc", "id"), 2, page.next_cursor)
        assert [*page.entries, *rest.entries] == sorted(runs, key=lambda run: run.id)
        assert await continuum.acount(where=where) == 3
        assert await continuum.acount("default", where, PLAN) == {"pro": 3}

    async def test_entries_need_no_further_query(self):
        await sync_to_async(RunFactory)(input=[1])
        page = await continuum.aquery()
        assert page.entries[0].input == [1]


def test_nothing_that_is_handed_over_becomes_a_part_of_a_statement():
    """Every piece of text that callers choose travels as a parameter, unless it is a name of letters and the like."""
    evil = "x' OR 1=1; DROP TABLE continuum_runs; --"
    path = ["attributes", evil]
    where = [("eq", path, evil), ("in", path, [evil]), ("gt", path, evil), ("neq", path, {evil: 1}), ("exists", path)]
    where += [("eq", "workflow", evil), ("startswith", "workflow", evil), ("gt", "state", evil)]
    wanted = _query(evil, where, "desc", "started_at", None)
    for statement in (in_order(wanted, 5, 5), gathered(wanted, 5), counted(wanted, Text(*expression((evil,))))):
        assert "DROP" not in statement.sql
        assert statement.params.count(evil) >= 6
    RunFactory()
    assert not continuum.query(evil, where).entries
    assert continuum.count(evil, where, path) == {}
    assert Run.objects.count() == 1


@pytest.mark.parametrize(
    ("name", "stands_in_it"), [("shop.orders:eu_1-a", True), *((f"a{c}b", False) for c in "'\\%\" é")]
)
def test_only_names_that_mean_nothing_in_sql_stand_in_a_statement(name, stands_in_it):
    where = [("eq", "workflow", name), ("eq", "state", "failed")]
    statement = ended_in_order(_query(name, where, "desc", "started_at", None), [name], 5)
    assert (name in statement.sql) is stands_in_it
    assert (name in statement.params) is not stands_in_it
    run = RunFactory(workflow=name, namespace=name, state="failed", completed_at=NOW)
    assert continuum.query(name, where).entries == [run]
