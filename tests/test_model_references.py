"""Model instances travel as references: workflow code sees the reference, activities the row as it is then."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils.functional import SimpleLazyObject

import continuum
from continuum import DurableValueError, ModelRef, Retry, activity, side_effect, wait_signal, workflow
from continuum.values import decode, display, encode
from continuum.worker.instances import load
from tests.app.models import Country, Item, NamedItem, Parcel, Seat, Ticket
from tests.workers import run_until_idle

pytestmark = pytest.mark.django_db(transaction=True)

seen: list[Any] = []


@pytest.fixture(autouse=True)
def forget():
    seen.clear()


@pytest.fixture
def item():
    return Item.objects.create(name="lamp")


@pytest.fixture
def mirror():
    """A second alias of the same database, in this thread."""
    connections["mirror"] = connection
    yield "mirror"
    del connections["mirror"]


@dataclass
class Basket:
    owner: str
    items: list[Item]
    gift: Item | None = None
    kept: ModelRef | None = None


@dataclass(frozen=True)
class Box:
    item: Item
    tags: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    first: Item
    second: int


@activity
def look(value: Any) -> str:
    seen.append(value)
    return type(value).__name__


@activity
def look_at_item(item: Item) -> str:
    seen.append(item)
    return item.name


@activity
def look_at_items(items: list[Item], *, others: dict[str, Item]) -> int:
    seen.append((items, others))
    return len(items) + len(others)


@activity
def look_into(basket: Basket, box: Box, pair: Pair) -> str:
    seen.append((basket, box, pair))
    return basket.owner


@activity
async def look_async(item: Item) -> str:
    seen.append(item)
    await asyncio.sleep(0)
    return (await Item.objects.aget(pk=item.pk)).name


@activity
def keep(ref: ModelRef, refs: list[ModelRef]) -> str:
    seen.append((ref, refs))
    return ref.label


@activity
def create(name: str) -> Item:
    return Item.objects.create(name=name)


@activity
def create_many(names: list[str]) -> list[Item]:
    return [Item.objects.create(name=name) for name in names]


@activity
def unsaved() -> dict:
    return {"items": [Item(name="new")]}


@activity(retry=Retry(max_attempts=5, base=0.01))
def look_stubbornly(item: Item) -> str:
    seen.append(item)
    return item.name


@workflow
async def shows(value: Any) -> Any:
    seen.append(value)
    return await look(value)


@workflow
async def returns(item: Item) -> Item:
    seen.append(item)
    return item


@workflow
async def asks(item: Item) -> str:
    return await look_at_item(item)


@workflow
async def asks_async(item: Item) -> str:
    return await look_async(item)


@workflow
async def asks_for_many(items: list[Item], others: dict[str, Item]) -> int:
    return await look_at_items(items, others=others)


@workflow
async def asks_inside(basket: Basket, box: Box, pair: Pair) -> str:
    return await look_into(basket, box, pair)


@workflow
async def asks_for_references(item: Item) -> str:
    return await keep(item, [item, item])


@workflow
async def makes(name: str) -> str:
    made = await create(name)
    seen.append(made)
    return await look_at_item(made)


@workflow
async def makes_many(names: list[str]) -> list:
    return await create_many(names)


@workflow
async def makes_unsaved() -> Any:
    return await unsaved()


@workflow
async def makes_aside() -> Any:
    return side_effect(first_item)


def first_item() -> Item:
    return Item.objects.order_by("pk").first()


@workflow(signals={"item": Item, "ref": ModelRef, "any": Any})
async def listens(name: str) -> Any:
    got = await wait_signal(name)
    seen.append(got)
    return await look(got)


@workflow
async def builds_its_own(pk: int) -> str:
    return await look_at_item(ModelRef("testapp.Item", pk))


@activity(transactional=True)
def rename(item: Item, name: str) -> Item:
    seen.append(connection.in_atomic_block)
    item.name = name
    item.save()
    return item


@workflow
async def asks_a_queue(item: Item) -> str:
    return await look_at_item.options(queue="slow")(item)


@workflow
async def renames(item: Item, name: str) -> str:
    return await look_at_item(await rename(item, name))


@workflow
async def has_child(item: Item) -> Item:
    return await returns(item)


@workflow
async def insists(item: Item) -> str:
    return await look_stubbornly(item)


def result_of(flow, *args):
    run = continuum.start(flow, *args)
    run_until_idle()
    return continuum.result(run, timeout=5)


class TestModelRef:
    def test_is_a_value(self):
        ref = ModelRef("shop.Order", 5, "default")
        assert ref == ModelRef("shop.Order", 5)
        assert {ref: 1}[ModelRef("shop.Order", 5)] == 1
        with pytest.raises(AttributeError):
            ref.pk = 6

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("Order", 1), "label must be an app label and a model name"),
            ((5, 1), "label must be a string"),
            (("shop.Order", None), "pk must not be None"),
            (("shop.Order", [1, 2]), "a tuple where it is composite"),
            (("shop.Order", 1, ""), "using must be a database alias"),
            (("shop.Order", 1, None), "using must be a database alias"),
        ],
    )
    def test_refuses_what_finds_nothing(self, arguments, complaint):
        with pytest.raises((TypeError, ValueError), match=complaint):
            ModelRef(*arguments)

    @pytest.mark.parametrize("pk", [5, "de", UUID(int=7), ("A", 3)])
    def test_survives_as_text_whatever_its_key_is(self, pk):
        ref = ModelRef("shop.Order", pk, "replica")
        for annotation in (None, ModelRef, Item, Any, ModelRef | None, Basket | ModelRef, Basket | Item):
            assert decode(encode(ref, annotation), annotation) == ref
        assert decode(encode([ref, {"a": (ref,)}])) == [ref, {"a": (ref,)}]

    def test_reads_well(self):
        assert encode(ModelRef("shop.Order", 5)) == '{"~model":["shop.Order",5,"default"]}'
        assert display('[{"~model":["shop.Order",5,"default"]}]') == ["shop.Order 5"]
        assert display('{"~model":["shop.Line",{"~tuple":[1,2]},"eu"]}') == "shop.Line [1, 2] in 'eu'"
        assert str(ModelRef("shop.Order", 5, "eu")) == "shop.Order 5 in 'eu'"

    @pytest.mark.parametrize("text", ["5", '["shop.Order",5]', '["shop",5,"default"]', '["shop.Order",null,"default"]'])
    def test_malformed_text_is_rejected(self, text):
        with pytest.raises(DurableValueError, match='"~model" is malformed'):
            decode(f'{{"~model":{text}}}')


class TestEncoding:
    def test_an_instance_is_a_reference_under_any_annotation(self, item):
        ref = ModelRef("testapp.Item", item.pk, "default")
        for annotation in (None, Item, Item | None, ModelRef, Basket | Item, Any):
            assert decode(encode(item, annotation), annotation) == ref

    def test_an_instance_remembers_its_database(self, item, mirror):
        assert decode(encode(Item.objects.using(mirror).get())) == ModelRef("testapp.Item", item.pk, mirror)

    def test_keys_of_every_kind(self):
        ticket = Ticket.objects.create()
        assert decode(encode(ticket)) == ModelRef("testapp.Ticket", ticket.pk)
        assert decode(encode(Country.objects.create(code="de"))) == ModelRef("testapp.Country", "de")
        assert decode(encode(Seat.objects.create(row="A", number=3))) == ModelRef("testapp.Seat", ("A", 3))

    def test_the_label_is_that_of_the_class_that_was_passed(self, item):
        parcel = Parcel.objects.create(name="box", weight=3)
        assert decode(encode(parcel)) == ModelRef("testapp.Parcel", parcel.pk)
        assert decode(encode(NamedItem.objects.get(pk=item.pk))).label == "testapp.NamedItem"
        assert decode(encode(Item.objects.only("pk").get(pk=item.pk))) == ModelRef("testapp.Item", item.pk)

    def test_a_lazy_object_is_what_it_stands_for(self, item):
        assert decode(encode(SimpleLazyObject(lambda: item))) == ModelRef("testapp.Item", item.pk)

    @pytest.mark.parametrize(
        "made", [lambda: Item(name="new"), lambda: Ticket(), lambda: Seat(row="A"), lambda: Item(pk=5)]
    )
    def test_what_is_not_in_the_database_is_refused_with_the_path(self, made):
        with pytest.raises(
            DurableValueError, match=r"^input\[0\]\.items\[1\]: \w+ is not durable; it is not in the database"
        ):
            continuum.start(shows, {"items": [1, made()]})
        assert not continuum.Run.objects.exists()

    def test_a_deleted_instance_is_refused(self, item):
        item.delete()
        with pytest.raises(DurableValueError, match="not in the database"):
            encode(item)

    def test_a_queryset_is_refused(self, item):
        with pytest.raises(DurableValueError, match="pass a list"):
            continuum.start(shows, Item.objects.all())


class TestRuns:
    def test_workflow_code_sees_the_reference_and_an_activity_the_row_of_that_moment(self, item):
        run = continuum.start(shows, item)
        assert run.input == [ModelRef("testapp.Item", item.pk)] == continuum.get_run(run).input
        Item.objects.update(name="renamed")
        run_until_idle()
        assert continuum.result(run) == "Item"
        assert seen[0] == ModelRef("testapp.Item", item.pk)
        assert (seen[1].name, seen[1]._state.db, seen[1]._state.adding) == ("renamed", "default", False)

    def test_an_annotated_parameter_works(self, item):
        assert result_of(asks, item) == "lamp"

    def test_an_async_activity_gets_the_instance(self, item):
        assert result_of(asks_async, item) == "lamp"

    def test_an_activity_of_a_queue_gets_the_instance(self, item):
        assert result_of(asks_a_queue, item) == "lamp"
        assert seen == [item]

    def test_a_transactional_activity_loads_and_saves_in_its_transaction(self, item):
        assert result_of(renames, item, "renamed") == "renamed"
        assert seen == [True, item]

    def test_a_child_sees_the_reference_and_may_return_it(self, item):
        ref = ModelRef("testapp.Item", item.pk)
        assert result_of(has_child, item) == ref
        assert seen == [ref]

    def test_the_result_of_a_workflow_is_a_reference(self, item):
        assert result_of(returns, item) == ModelRef("testapp.Item", item.pk)

    def test_start_many_takes_instances(self, item):
        runs = continuum.start_many(asks, [item, item])
        run_until_idle()
        assert [continuum.result(run) for run in runs] == ["lamp", "lamp"]

    def test_containers_are_looked_into(self, item):
        other = Item.objects.create(name="desk")
        assert (
            result_of(shows, {"list": [item, (item, other)], "set": {other}, "deep": [[{"x": item}]], "n": 1}) == "dict"
        )
        got = seen[1]
        assert got == {"list": [item, (item, other)], "set": {other}, "deep": [[{"x": item}]], "n": 1}

    def test_dictionary_keys_too(self, item):
        result_of(shows, {item: "lamp", ("a", item): 2})
        assert seen[1] == {item: "lamp", ("a", item): 2}

    def test_dataclasses_and_named_tuples_are_looked_into(self, item):
        basket = Basket("ann", [item], item, ModelRef("testapp.Item", item.pk))
        assert result_of(asks_inside, basket, Box(item, ["a"]), Pair(item, 2)) == "ann"
        got, box, pair = seen[0]
        assert (got.items, got.gift) == ([item], item)
        assert got.kept == ModelRef("testapp.Item", item.pk)  # annotated so
        assert (box.item, box.tags) == (item, ["a"])
        assert pair == Pair(item, 2)

    def test_an_activity_that_asks_for_references_gets_them(self, item):
        ref = ModelRef("testapp.Item", item.pk)
        assert result_of(asks_for_references, item) == "testapp.Item"
        assert seen == [(ref, [ref, ref])]

    def test_workflow_code_may_make_a_reference_itself(self, item):
        assert result_of(builds_its_own, item.pk) == "lamp"

    def test_an_activity_may_return_an_instance(self):
        assert result_of(makes, "chair") == "chair"
        assert seen == [ModelRef("testapp.Item", Item.objects.get().pk), Item.objects.get()]

    def test_an_activity_may_return_many(self):
        got = result_of(makes_many, ["a", "b"])
        assert got == [ModelRef("testapp.Item", row.pk) for row in Item.objects.order_by("pk")]

    def test_an_unsaved_instance_is_no_result(self):
        run = continuum.start(makes_unsaved)
        run_until_idle()
        error = continuum.get_run(run).error
        assert "result.items[0]: Item is not durable; it is not in the database" in error["message"]

    def test_a_side_effect_may_return_an_instance(self, item, monkeypatch):
        monkeypatch.setattr("tests.test_model_references.first_item", lambda: item)
        assert result_of(makes_aside) == ModelRef("testapp.Item", item.pk)

    @pytest.mark.parametrize("name", ["item", "ref", "any"])
    def test_a_signal_may_carry_an_instance_or_a_reference(self, item, name):
        for payload in (item, ModelRef("testapp.Item", item.pk), Parcel.objects.create(name="box", weight=1)):
            run = continuum.start(listens, name)
            continuum.signal(run, name, payload)
            run_until_idle()
            assert continuum.result(run) == type(seen[-1]).__name__
            assert isinstance(seen[-2], ModelRef)
            assert isinstance(seen[-1], Item)

    def test_a_declared_signal_refuses_another_model(self):
        run = continuum.start(listens, "item")
        for payload in (Country.objects.create(code="de"), ModelRef("testapp.Country", "de"), ModelRef("no.Such", 1)):
            with pytest.raises(continuum.SignalRefusedError):
                continuum.signal(run, "item", payload)

    def test_keys_of_every_kind_are_found(self):
        rows = [Ticket.objects.create(), Country.objects.create(code="de"), Seat.objects.create(row="A", number=3)]
        rows += [Parcel.objects.create(name="box", weight=3), Seat.objects.create(row="A", number=4)]
        result_of(shows, rows)
        assert seen[1] == rows
        assert [type(row) for row in seen[1]] == [type(row) for row in rows]
        assert seen[1][3].weight == 3

    def test_a_proxy_comes_back_as_the_proxy(self, item):
        assert result_of(shows, NamedItem.objects.get()) == "NamedItem"

    def test_what_a_manager_hides_is_found(self):
        hidden = Item._base_manager.create(name="hidden")
        assert not Item.objects.exists()
        assert result_of(asks, hidden) == "hidden"

    def test_a_run_started_in_a_transaction_finds_what_that_transaction_made(self):
        with transaction.atomic():
            run = continuum.start(asks, Item.objects.create(name="fresh"))
        run_until_idle()
        assert continuum.result(run) == "fresh"

    def test_a_value_that_merely_looks_like_a_reference_stays_what_it_is(self):
        assert result_of(shows, {"~model": ["testapp.Item", 1, "default"]}) == "dict"
        assert seen[1] == {"~model": ["testapp.Item", 1, "default"]}


class TestMissing:
    def failure(self, flow, *args):
        run = continuum.start(flow, *args)
        run_until_idle()
        with pytest.raises(continuum.RunFailedError) as caught:
            continuum.result(run, timeout=5)
        return caught.value.error

    def test_a_row_that_is_gone_fails_the_activity_at_once_and_says_which(self, item):
        pk = item.pk
        run = continuum.start(insists, item)
        item.delete()
        run_until_idle()
        (failed,) = [event for event in continuum.get_run(run).history() if event.type == "activity_failed"]
        assert failed.data["attempt"] == 1
        assert failed.data["error"]["type"] == "InstanceNotFoundError"
        assert (
            failed.data["error"]["message"] == f"there is no testapp.Item with primary key {pk} in database 'default'"
        )
        assert failed.data["error"]["details"] == {"label": "testapp.Item", "pk": pk, "using": "default"}
        assert seen == []

    @pytest.mark.parametrize(
        ("ref", "words"),
        [
            (ModelRef("nosuch.Model", 1), "No installed app with label 'nosuch'"),
            (ModelRef("testapp.Nothing", 1), "doesn't have a 'Nothing' model"),
            (ModelRef("testapp.Item", "five"), "that is no primary key of it"),
            (ModelRef("testapp.Item", (1, 2)), "that is no primary key of it"),
            (ModelRef("testapp.Seat", 1), "that is no primary key of it"),
            (ModelRef("testapp.Seat", ("A", 1, 2)), "that is no primary key of it"),
            (ModelRef("testapp.Ticket", "x"), "that is no primary key of it"),
            (ModelRef("testapp.Item", 1, "nowhere"), "The connection 'nowhere' doesn't exist"),
        ],
        ids=str,
    )
    def test_a_reference_that_cannot_be_followed_says_why(self, ref, words):
        error = self.failure(shows, ref)
        assert error["type"] == "ActivityError"
        assert f"there is no {ref.label} with primary key {ref.pk!r} in database {ref.using!r}" in error["message"]
        assert words in error["message"]

    def test_a_key_of_another_type_is_converted_as_the_field_does(self, item):
        assert result_of(shows, ModelRef("testapp.Item", str(item.pk))) == "Item"


def loaded(definition, *args, **kwargs):
    """What an attempt of an activity would be called with."""
    text = definition.encode_arguments(args, kwargs)
    attempt = SimpleNamespace(args_json=text, definition=definition)
    return load(attempt, *definition.decode_arguments(text))


class TestLoading:
    def test_one_query_for_all_instances_of_a_model(self):
        items = [Item.objects.create(name=str(n)) for n in range(20)]
        country = Country.objects.create(code="de")
        with CaptureQueriesContext(connection) as queries:
            args, kwargs = loaded(look_at_items, items, others={"a": items[0], "b": country})
        assert args == [items]
        assert kwargs == {"others": {"a": items[0], "b": country}}
        assert len(queries) == 2

    def test_each_row_is_read_from_the_database_it_came_from(self, item, mirror):
        mirrored = Item.objects.using(mirror).get()
        ([here, there],), _ = loaded(look, [item, mirrored])
        assert (here._state.db, there._state.db) == ("default", mirror)

    def test_arguments_without_references_cost_no_query_and_no_walk(self):
        args = [1, {"a": []}]
        with CaptureQueriesContext(connection) as queries:
            assert load(SimpleNamespace(args_json='[1,{"a":[]}]', definition=look), args, {})[0] is args
        assert not queries
