"""Durable values: what is stored, as what text, and what is refused."""

import collections
import enum
import functools
import importlib
import json
import math
import struct
import subprocess
import sys
import threading
import typing
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from io import BytesIO
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from continuum import values
from continuum.exceptions import ContinuumError, DurableValueError
from continuum.values import decode, display, encode, parameter_annotations, register_reference, return_annotation

T = TypeVar("T")
K = TypeVar("K")
PAIR = chr(0xD83D) + chr(0xDE00)  # two characters, of which UTF-16 would make one


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"
    SCARLET = "red"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Plan(enum.StrEnum):
    FREE = "free"
    PRO = "pro"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Mask(enum.IntFlag):
    A = 1
    B = 2


class Point(enum.Enum):
    ORIGIN = (0, 0)
    NOTHING = None


@dataclass
class Line:
    sku: str
    price: Decimal
    tags: tuple[str, ...] = ()


@dataclass
class Order:
    id: str
    lines: list[Line] = field(default_factory=list)
    parent: "Order | None" = None
    color: Color = Color.RED


@dataclass(frozen=True, slots=True)
class Money:
    cents: int
    currency: str = "EUR"


@dataclass
class Refund:
    order_id: str
    amount: Money


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class LabelledBox(Box[list[K]], Generic[K]):
    label: K


@dataclass
class MoneyBox(Box[Money]):
    pass


class Place(NamedTuple):
    money: Money
    rank: int = 1


class Basket(TypedDict, total=False):
    lines: list[Line]
    note: typing.Required[str]


class Tree(TypedDict):
    node: Money
    children: "list[Tree]"


def function() -> None: ...


def roundtrip(value: Any, annotation: Any = None) -> Any:
    """Store and restore a value, having checked that its text suits PostgreSQL."""
    text = encode(value, annotation)
    assert text.isascii()
    assert "\\u0000" not in text.replace("\\\\", "")
    return decode(text, annotation)


def assert_durable(value: Any, annotation: Any = None) -> None:
    restored = roundtrip(value, annotation)
    assert type(restored) is type(value)
    assert restored == value


def refusal(value: Any, annotation: Any = None, **options: Any) -> str:
    with pytest.raises(DurableValueError) as caught:
        encode(value, annotation, **options)
    return str(caught.value)


def rejection(text: str, annotation: Any = None) -> str:
    with pytest.raises(DurableValueError) as caught:
        decode(text, annotation)
    return str(caught.value)


class TestText:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "null"),
            (True, "true"),
            (-7, "-7"),
            (1e5, "100000.0"),
            (1e300, "1e+300"),
            (-0.0, "-0.0"),
            ("é", '"\\u00e9"'),
            ("😀", '"\\ud83d\\ude00"'),
            ([1, [2, {}]], "[1,[2,{}]]"),
            ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
            ((1, "a"), '{"~tuple":[1,"a"]}'),
            ({3}, '{"~set":[3]}'),
            (frozenset(), '{"~frozenset":[]}'),
            (b"\x00\xff", '{"~bytes":"AP8="}'),
            (Decimal("1.50"), '{"~decimal":"1.50"}'),
            (date(2024, 2, 29), '{"~date":"2024-02-29"}'),
            (datetime(2024, 5, 1, 12, tzinfo=UTC), '{"~datetime":"2024-05-01T12:00:00+00:00"}'),
            (timedelta(minutes=-1, microseconds=1), '{"~timedelta":"-59.999999"}'),
            (UUID(int=1), '{"~uuid":"00000000-0000-0000-0000-000000000001"}'),
            ({1: "a"}, '{"~dict":[[1,"a"]]}'),
            ({"~date": "x"}, '{"~dict":[["~date","x"]]}'),
            ("a\x00\\", '{"~str":"a\\\\u0000\\\\\\\\"}'),
        ],
    )
    def test_is_stable(self, value, text):
        assert encode(value) == text
        assert decode(text) == value

    def test_of_a_dataclass_is_a_plain_object(self):
        assert encode(Money(5), Money) == '{"cents":5,"currency":"EUR"}'

    def test_of_an_annotated_enum_is_its_value(self):
        assert encode(Color.BLUE, Color) == '"blue"'
        assert encode(Color.BLUE) == '{"~enum":["tests.test_values:Color","BLUE"]}'

    def test_does_not_depend_on_the_hash_seed(self):
        program = (
            "from continuum.values import encode\n"
            "print(encode({'set': {*'abcdefgh', 1, (2, 'x'), frozenset({'p', 'q', 'r'})}}))"
        )
        outputs = {
            subprocess.run(
                [sys.executable, "-c", program],
                env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2", "3")
        }
        assert len(outputs) == 1
        assert len(outputs.pop()) > 50

    def test_importing_the_codec_needs_no_django(self):
        program = "import sys, continuum.values; sys.exit('django' in sys.modules)"
        subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, check=True)

    @pytest.mark.django_db
    @pytest.mark.parametrize("value", ["a\x00b", "\ud800", PAIR, PAIR[::-1], "😀é", "\\u0000", '"\\'])
    def test_can_be_read_by_operators_of_postgresql(self, value):
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::json::text, %s::json ->> 0", [encode(value), encode([value])])
            stored, element = cursor.fetchone()
        assert decode(stored) == value
        assert display(encode(value)) in (element, json.loads(element)["~str"] if "~str" in element else element)


class TestScalars:
    @pytest.mark.parametrize("value", ["", "~", "~date", "\x00", "\ud800", PAIR, "a\\u0000", "\\\x00", "\x7f"])
    def test_strings_survive_as_values_and_as_keys(self, value):
        assert_durable(value)
        assert_durable([{value: [value]}])
        assert_durable({value: value, "other": value})

    @pytest.mark.parametrize("digits", [1, 616, 617, 618, 4300, 10_000])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_integers_of_any_size_survive_whatever_the_digit_limit(self, digits, sign):
        value = sign * (10**digits - 1)
        texts = {encode(value), encode([value])[1:-1], encode({"a": [0, value]})[8:-2]}
        assert len(texts) == 1
        limit = sys.get_int_max_str_digits()
        try:
            sys.set_int_max_str_digits(640)
            assert encode([value])[1:-1] in texts
            assert decode(texts.pop()) == value
        finally:
            sys.set_int_max_str_digits(limit)

    def test_a_huge_integer_is_found_wherever_it_stands_in_the_text(self):
        huge = 10**617
        for width in range(64):
            assert "~int" in encode(["x" * width, huge, "y" * 100])

    @pytest.mark.parametrize("value", [True, 1, 1.0, 0, False, 0.0, 2**63, 5e-324, 1.7976931348623157e308])
    def test_numbers_keep_their_type(self, value):
        assert_durable(value)
        assert_durable([value])

    def test_negative_zero_keeps_its_sign(self):
        assert math.copysign(1, roundtrip([-0.0])[0]) == -1.0

    @pytest.mark.parametrize("text", ["0", "-0", "0.00", "1E+5", "-1.5E-400", "1E+999999", "123456789" * 20])
    def test_decimals_keep_every_digit_and_the_exponent(self, text):
        restored = roundtrip(Decimal(text))
        assert restored.as_tuple() == Decimal(text).as_tuple()

    @pytest.mark.parametrize(
        "value",
        [
            datetime(1, 1, 1),
            datetime(9999, 12, 31, 23, 59, 59, 999999),
            datetime(2024, 1, 1, fold=1),
            datetime(2024, 1, 1, tzinfo=UTC),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=1, microseconds=2))),
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
            datetime(2024, 7, 1, tzinfo=ZoneInfo("America/Argentina/Buenos_Aires")),
            datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=0),
            datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
            datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
            time(1, 2, 3, 4),
            time(1, 2, tzinfo=UTC),
            time(1, 2, tzinfo=ZoneInfo("Asia/Tokyo"), fold=1),
        ],
    )
    def test_moments_keep_zone_offset_name_and_fold(self, value):
        restored = roundtrip(value)
        assert restored == value
        assert restored.fold == value.fold
        assert type(restored.tzinfo) is type(value.tzinfo)
        assert str(restored.tzinfo) == str(value.tzinfo)
        assert restored.utcoffset() == value.utcoffset()
        assert restored.replace(tzinfo=None) == value.replace(tzinfo=None)

    def test_a_foreign_zone_with_a_fixed_offset_becomes_a_plain_one(self):
        class Fixed(tzinfo):
            def utcoffset(self, at):
                return timedelta(hours=2)

        class Seasonal(tzinfo):
            def utcoffset(self, at):
                return timedelta(hours=1 + (at.month == 7))

        assert roundtrip(datetime(2024, 1, 1, tzinfo=Fixed())).tzinfo == timezone(timedelta(hours=2))
        assert "use datetime.timezone or zoneinfo.ZoneInfo" in refusal(datetime(2024, 1, 1, tzinfo=Seasonal()))

    def test_a_zoneinfo_zone_is_the_same_object_again(self):
        zone = ZoneInfo("Europe/Paris")
        assert roundtrip(datetime(2024, 1, 1, tzinfo=zone)).tzinfo is zone

    @pytest.mark.parametrize(
        "value",
        [timedelta.min, timedelta.max, timedelta(), timedelta(microseconds=-1), timedelta(days=-1, microseconds=1)],
    )
    def test_durations_are_exact_to_the_microsecond(self, value):
        assert_durable(value)

    @pytest.mark.parametrize(
        "member", [*Color, *Size, *Plan, *Access, *Mask, *Point, Access(0), Access.READ | Access.WRITE, Mask(9)]
    )
    def test_enum_members_stay_members(self, member):
        for annotation in (None, type(member), type(member) | None, type(member) | str, Any):
            assert roundtrip(member, annotation) is member

    @pytest.mark.parametrize("value", ["red", "purple", 1, True, None, 1.5, {"a": 1}, Plan.FREE])
    def test_a_value_that_is_no_member_stays_what_it_is(self, value):
        for annotation in (Color, Size, Color | Size, Color | None):
            assert_durable(value, annotation)

    def test_an_annotated_enum_is_restored_from_plain_json(self):
        assert decode('"blue"', Color) is Color.BLUE
        assert decode('["free"]', list[Plan]) == [Plan.FREE]

    def test_an_enum_whose_value_is_not_what_finds_it_goes_by_name(self):
        class Titled(enum.Enum):
            A = 1

            @property
            def value(self):
                return "title"

        assert roundtrip(Titled.A, Titled) is Titled.A

    def test_an_annotated_enum_may_be_local(self):
        class Local(enum.Enum):
            A = "a"
            B = (1, 2)

        assert roundtrip([Local.A, Local.B], list[Local]) == [Local.A, Local.B]
        assert roundtrip(Local.B, Local | Color) is Local.B
        assert refusal(Local.A).startswith("value: a member of TestScalars.")
        assert "annotate the parameter, field or return value" in refusal(Local.A)

    def test_an_enum_of_a_script_needs_an_annotation(self, monkeypatch):
        script = enum.Enum("Script", "RUN", module="__main__", qualname="Script")
        monkeypatch.setattr(sys.modules["__main__"], "Script", script, raising=False)
        assert "cannot be found again by that name in module __main__" in refusal(script.RUN)
        assert roundtrip(script.RUN, script) is script.RUN

    def test_frozen_time_is_stored_as_real_time(self):
        fake = type("FakeDatetime", (datetime,), {"__module__": "freezegun.api"})
        assert decode(encode(fake(2024, 1, 1, tzinfo=UTC))) == datetime(2024, 1, 1, tzinfo=UTC)


class TestContainers:
    @pytest.mark.parametrize(
        "value",
        [
            [],
            {},
            (),
            set(),
            ((), [()], {"a": ()}),
            {1, "1", 1.5, None, (1, 2), frozenset({3}), b"x", date(2024, 1, 1)},
            {None: 1, True: 2, 2.5: 3, (1, 2): 4, "a": 5, frozenset(): 6, Color.RED: 7},
            {"~tuple": [1]},
            {"~": {"~any": {"~dict": []}}},
            {"~a": 1, "~b": 2},
            {"": ""},
            [{"~datetime": "2024-01-01"}, "~datetime"],
        ],
    )
    def test_come_back_as_the_same_kind(self, value):
        assert_durable(value)
        assert_durable([value, {"inside": value}])
        for annotation in (
            list[Order],
            dict[str, Order],
            dict[Color, Any],
            tuple[Order, int],
            Order,
            Order | Refund,
            Basket,
        ):
            assert_durable(value, annotation)

    @pytest.mark.parametrize("value", [{"b": 1, "a": 2}, {2: "b", 1: "a"}, {"b": 1, 1: 2, "a": 3}])
    def test_dictionaries_keep_their_order(self, value):
        assert list(roundtrip(value)) == list(value)

    def test_decoding_gives_fresh_values(self):
        text = encode([{"a": [1]}])
        first = decode(text)
        first[0]["a"].append(2)
        assert decode(text) == [{"a": [1]}]

    def test_encoding_does_not_change_the_value(self):
        value = {"lines": [(1, {2})], "order": {"~x": []}}
        encode(value)
        assert value == {"lines": [(1, {2})], "order": {"~x": []}}


class TestDataclasses:
    @pytest.mark.parametrize(
        ("value", "annotation"),
        [
            (Order("o1", [Line("a", Decimal(1), ("x",))], Order("o0"), Color.BLUE), Order),
            (None, Order | None),
            (Money(1), Money | None),
            (Money(1), Optional[Money]),  # noqa: UP045 - the old spelling as well
            (Money(1), Union[int, str, Money]),  # noqa: UP007
            ([Money(1), None], list[Money | None]),
            ((Money(1), Money(2)), tuple[Money, ...]),
            ((Money(1), 3, Refund("o", Money(2))), tuple[Money, int, Refund]),
            ((Money(1), 3, "more"), tuple[Money, int]),
            ({Money(1)}, set[Money]),
            (frozenset({Money(1)}), frozenset[Money]),
            ({"a": [Money(1)]}, dict[str, list[Money]]),
            ({"a": Money(1)}, Mapping[str, Money]),
            ({Money(1): Money(2)}, dict[Money, Money]),
            ({"~one": Money(2)}, dict[str, Money]),
            ({Color.RED: 1, Color.BLUE: 2}, dict[Color, int]),
            ([Money(1)], Sequence[Money]),
            ((Money(1),), Sequence[Money]),
            ((Money(1),), list[Money]),
            (Money(1), Annotated[Money, "unit"]),
            ([Money(1)], Annotated[list[Annotated[Money, []]], []]),
            (Money(1), NewType("Price", Money)),
            (Box(Money(1)), Box[Money]),
            (Box([Box(Money(1))]), Box[list[Box[Money]]]),
            (Box(Decimal(1)), Box),
            (LabelledBox([Money(1)], Money(2)), LabelledBox[Money]),
            (MoneyBox(Money(1)), MoneyBox),
            (Place(Money(1)), Place),
            ([Place(Money(1), 2)], list[Place]),
            ({"lines": [Line("a", Decimal(1))], "note": "n"}, Basket),
            ({"note": "n", "other": {1}}, Basket),
            ({"node": Money(1), "children": [{"node": Money(2), "children": []}]}, Tree),
            (Color.RED, Literal[Color.RED, "x"]),
            ("x", Literal[Color.RED, "x"]),
        ],
    )
    def test_are_restored_by_annotation(self, value, annotation):
        assert_durable(value, annotation)
        assert_durable({"nested": [value]}, dict[str, list[annotation]])

    def test_element_types_are_restored_too(self):
        restored = roundtrip(Order("o", [Line("a", Decimal("1.0"))]), Order)
        assert type(restored.lines[0]) is Line
        assert type(restored.lines[0].price) is Decimal

    def test_type_variables_follow_the_hierarchy(self):
        assert type(roundtrip(LabelledBox([Money(1)], Money(2)), LabelledBox[Money]).content[0]) is Money

    def test_fields_that_init_does_not_take_are_restored(self):
        @dataclass
        class Counter:
            start: int
            _: KW_ONLY
            step: int = 1
            seen: list[int] = field(init=False, default_factory=list)
            limit: ClassVar[int] = 9

        counter = Counter(1, step=2)
        counter.seen.append(3)
        assert_durable(counter, Counter)

    def test_post_init_does_not_change_the_state_a_second_time(self):
        @dataclass(frozen=True)
        class Scaled:
            amount: int
            doubled: int = field(init=False)

            def __post_init__(self):
                object.__setattr__(self, "amount", self.amount * 100)
                object.__setattr__(self, "doubled", self.amount * 2)
                object.__setattr__(self, "prepared", True)

        restored = roundtrip(Scaled(5), Scaled)
        assert (restored.amount, restored.doubled, restored.prepared) == (500, 1000, True)

    def test_an_own_constructor_is_not_called(self):
        @dataclass(init=False)
        class Own:
            a: int
            b: str = "b"

            def __init__(self, both):
                self.a = self.b = both

        assert vars(roundtrip(Own(7), Own)) == {"a": 7, "b": 7}
        assert vars(decode('{"a":1}', Own)) == {"a": 1, "b": "b"}

    def test_made_at_run_time_work(self):
        Made = make_dataclass("Made", [("a", int), ("b", Money)])
        assert_durable(Made(1, Money(2)), Made)

    def test_self_reference_by_typing_self(self):
        @dataclass
        class Node:
            next: typing.Self | None

        assert_durable(Node(Node(None)), Node)

    def test_a_field_that_hides_the_class_it_is_annotated_with(self):
        @dataclass
        class Event:
            money: "Money"
            Money: "Money | None" = None

        assert_durable(Event(Money(1), Money(2)), Event)

    def test_a_field_that_hides_a_builtin_it_is_annotated_with(self):
        @dataclass
        class Batch:
            items: "list[Money]"
            list: "int" = 0

        assert_durable(Batch([Money(1)]), Batch)

    def test_nested_200_levels_are_the_limit(self):
        @dataclass
        class Node:
            next: "Node | None" = None

        node = Node()
        for _ in range(199):
            node = Node(node)
        assert_durable(node, Node)
        assert "nested more than 200 levels" in refusal(Node(node), Node)

    def test_a_class_nested_in_the_class_itself(self):
        @dataclass
        class Outer:
            @dataclass
            class Inner:
                a: int

            inner: "Inner"

        assert_durable(Outer(Outer.Inner(1)), Outer)

    def test_a_dictionary_where_a_dataclass_is_annotated_stays_one(self):
        for annotation in (Money, Money | None, Money | Refund, Money | dict, list[Money]):
            assert_durable({"cents": 1, "currency": "EUR"}, annotation)

    def test_plain_json_is_restored_to_a_dataclass(self):
        assert decode('{"order_id":"o1","amount":{"cents":1}}', Refund) == Refund("o1", Money(1))

    def test_a_field_added_since_takes_its_default(self):
        assert decode('{"id":"o1"}', Order) == Order("o1")

    def test_a_stored_object_that_does_not_fit_is_rejected(self):
        assert rejection('{"cents":1,"amount":2}', Money) == "value.amount: Money has no such field"
        assert rejection('[{"currency":"EUR"}]', list[Money]) == (
            "value[0]: Money needs cents, which the stored value does not have"
        )

    def test_an_error_of_the_class_names_the_place(self):
        @dataclass
        class Positive:
            n: int

            def __post_init__(self):
                if self.n < 0:
                    raise ValueError("must be positive")

        assert rejection('{"p":{"n":-1}}', dict[str, Positive]) == (
            "value.p: Positive cannot be restored: ValueError: must be positive"
        )

    def test_without_annotation_they_are_refused_with_advice(self):
        assert refusal({"order": [Order("o")]}) == (
            "value.order[0]: Order is not durable; annotate the parameter, field or return value with Order so that it "
            "can be restored"
        )

    def test_a_subclass_of_the_annotated_class_is_refused(self):
        assert refusal(MoneyBox(Money(1)), Box[Money]).startswith("value: MoneyBox is not durable; annotate")

    def test_init_vars_are_refused_clearly(self):
        @dataclass
        class WithInitVar:
            a: int
            b: InitVar[int] = 0

        expected = "it has InitVar parameters (b), whose values an instance does not keep"
        assert expected in refusal(WithInitVar(1), WithInitVar)
        assert expected in rejection('{"a":1}', WithInitVar)

    def test_a_field_never_set_is_refused(self):
        @dataclass(slots=True)
        class Sparse:
            a: int = field(init=False)

        assert refusal(Sparse(), Sparse) == "value.a: a field that was never set is not durable"

    def test_a_dataclass_that_is_also_a_builtin_is_refused(self):
        @dataclass
        class Both(dict):
            a: int

        assert "it is a built-in type as well" in refusal(Both(1), Both)

    def test_an_annotation_that_cannot_be_resolved_is_named(self):
        @dataclass
        class Lost:
            money: "Nowhere"  # noqa: F821
            at: "datetime"

        assert_durable(Lost(1, datetime(2024, 1, 1)), Lost)
        assert refusal(Lost(Money(1), None), Lost).endswith(
            "(its annotation 'Nowhere' could not be resolved: is that imported for type checking only?)"
        )


class TestUnions:
    @pytest.mark.parametrize(
        ("value", "annotation"),
        [
            (Money(1), Money | Refund),
            (Refund("o", Money(1)), Money | Refund | None),
            (None, Money | Refund | None),
            ("text", Money | Refund | str),
            (Decimal(1), Money | Refund | Decimal),
            ({"cents": 1, "currency": "x"}, Money | Refund | dict),
            ({"cents": 1}, Money | Refund | dict),
            ({"other": 1}, Money | Refund | dict),
            ({"cents": 1, "currency": "x"}, Money | dict[str, Refund]),
            ({"cents": Refund("o", Money(1)), "currency": Refund("p", Money(1))}, Money | dict[str, Refund]),
            ({"any": Refund("o", Money(1))}, Money | dict[str, Refund]),
            (Money(1), Money | dict[str, Refund]),
            ([Money(1), Refund("o", Money(1))], list[Money] | list[Refund]),
            ([Money(1)], list[Money] | tuple[Refund, ...]),
            ((Refund("o", Money(1)),), list[Money] | tuple[Refund, ...]),
            ((Money(1), 2), tuple[Money, int] | list[Money]),
            ({"a": Money(1)}, dict[str, Money] | dict[str, Refund]),
            (Color.RED, Color | Plan),
            (Plan.PRO, Color | Plan),
            ("red", Color | Plan),
            (Color.RED, Color | Money | str),
            ("red", Color | Money | str),
            (Place(Money(1)), Place | Money),
            ({"note": "n"}, Basket | Money),
            ({"note": "n", "lines": [Line("a", Decimal(1))]}, Basket | Money),
        ],
    )
    def test_alternatives_are_told_apart(self, value, annotation):
        assert_durable(value, annotation)
        assert_durable([value], list[annotation])

    def test_plain_json_goes_to_the_class_with_exactly_these_fields(self):
        assert decode('{"cents":1,"currency":"EUR"}', Money | Refund) == Money(1)

    def test_a_class_that_gained_a_field_with_default_is_still_found(self):
        assert decode('{"cents":1}', Money | Refund) == Money(1)

    def test_an_object_that_fits_nothing_is_rejected_unless_a_dictionary_is_allowed(self):
        assert rejection('{"x":1}', Money | Refund) == (
            "value: an object with the fields x fits no alternative of the annotation"
        )
        assert decode('{"x":1}', Money | Refund | dict) == {"x": 1}

    def test_classes_with_the_same_fields_are_refused(self):
        @dataclass
        class Success:
            value: int

        @dataclass
        class Failure:
            value: int

        assert refusal([Success(1)], list[Success | Failure]) == (
            "value[0]: Success is not durable; its annotation also allows Failure, and the two cannot be told apart by "
            "their fields: give one a field that the other does not have"
        )
        assert rejection('{"value":1}', Success | Failure) == (
            "value: Success and Failure cannot be told apart by their fields"
        )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in 3.12")
class TestTypeParameters:
    SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from tests.test_values import Money
type Json = None | str | list[Json] | dict[str, Json]
type Amount = Money
type Pair[T] = tuple[T, T]
type Rope = Money | list[Rope]
type Lost = Nowhere
@dataclass
class Crate[T]:
    content: T
    more: Crate[T] | None = None
"""

    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "type_parameters_of_a_test.py").write_text(self.SOURCE)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "type_parameters_of_a_test", raising=False)
        return vars(importlib.import_module("type_parameters_of_a_test"))

    def test_aliases_are_looked_through(self, module):
        assert_durable(Money(1), module["Amount"])
        assert_durable((Money(1), Money(2)), module["Pair"][Money])

    def test_recursive_aliases_work(self, module):
        assert_durable({"a": [None, {"b": "c"}]}, module["Json"])
        assert_durable([Money(1), [Money(2), [[]]]], module["Rope"])

    def test_an_alias_of_something_unknown_is_named(self, module):
        assert_durable(1, module["Lost"])
        assert "its annotation 'Lost' could not be resolved" in refusal(Money(1), module["Lost"])

    def test_generic_classes_work(self, module):
        crate = module["Crate"]
        assert_durable(crate(Money(1), crate(Money(2))), crate[Money])


class Model:
    """What the codec expects of a pydantic model."""

    model_fields: ClassVar = {"price": None, "when": None}

    def __init__(self, price, when):
        self.price, self.when = price, when

    def __eq__(self, other):
        return type(other) is type(self) and vars(other) == vars(self)

    def model_dump(self, *, mode, **options):
        assert mode == "python"
        return dict(vars(self))

    @classmethod
    def model_validate(cls, data):
        if set(data) != {"price", "when"}:
            raise ValueError("does not validate")
        return cls(**data)


class TestModels:
    @pytest.mark.parametrize("annotation", [Model, Model | None, Model | Money, Model | dict])
    def test_are_restored_by_annotation(self, annotation):
        assert_durable(Model(Decimal("1.0"), date(2024, 1, 1)), annotation)
        assert_durable({"price": 1, "when": 2}, annotation)

    def test_validate_plain_json(self):
        assert decode('{"price":1,"when":null}', Model) == Model(1, None)
        assert rejection('{"price":1}', Model) == "value: Model cannot be restored: does not validate"

    def test_that_lose_data_are_refused(self):
        class Lossy(Model):
            def model_dump(self, **options):
                return {"price": 0, "when": None}

        assert refusal(Lossy(1, None), Lossy).endswith("does not give an equal model, so data would be lost")

    def test_without_annotation_are_refused_with_advice(self):
        assert "annotate the parameter, field or return value with Model" in refusal(Model(1, 2))

    def test_of_pydantic_itself(self):
        pydantic = pytest.importorskip("pydantic")

        class Item(pydantic.BaseModel):
            price: Decimal
            color: Color
            at: datetime

        class Cart(pydantic.BaseModel):
            model_config = pydantic.ConfigDict(alias_generator=str.upper)
            items: list[Item]
            tags: set[str] = set()
            place: Place | None = None

        class Secretive(pydantic.BaseModel):
            hidden: int = pydantic.Field(exclude=True)

        class Root(pydantic.RootModel[list[int]]):
            pass

        item = Item(price="1.50", color="red", at="2024-01-01T00:00:00Z")
        cart = Cart.model_validate({"ITEMS": [item], "TAGS": {"a"}, "PLACE": Place(Money(1))})
        for annotation in (Cart, Cart | None, Cart | Money):
            assert_durable(cart, annotation)
        assert_durable({"ITEMS": []}, Cart)
        assert_durable([Root([1]), [1]], list[Root])
        assert "data would be lost" in refusal(Secretive(hidden=1), Secretive)
        assert "cannot be restored" in rejection('{"ITEMS":1}', Cart)


class Lines(collections.UserList):
    """Stands for a class whose instances are kept elsewhere."""


class Row:
    def __init__(self, pk):
        self.pk = pk


@dataclass(frozen=True)
class RowRef:
    pk: int


class TestReferences:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch):
        monkeypatch.setattr(values.references, "_registered", {})

        def key_of(row):
            if row.pk is None:
                raise ValueError("save it first")
            return {"pk": row.pk}

        register_reference("row", (Row, RowRef), key_of, lambda key: RowRef(key["pk"]))

    def test_travel_as_their_key(self):
        assert encode([Row(5)]) == '[{"~row":{"pk":5}}]'
        assert roundtrip({"row": Row(5)}, dict[str, Row]) == {"row": RowRef(5)}

    def test_survive_another_passage(self):
        assert roundtrip(roundtrip(Row(5))) == RowRef(5)

    def test_may_be_found_by_a_predicate(self):
        register_reference("lines", lambda value: isinstance(value, Lines), list, Lines)
        assert roundtrip(Lines([1, (2,)])) == Lines([1, (2,)])

    def test_that_cannot_be_made_are_refused_with_the_reason(self):
        assert refusal([Row(None)]) == "value[0]: Row is not durable; save it first"

    def test_that_are_malformed_are_rejected(self):
        assert rejection('{"~row":{"id":1}}').startswith('value: the tag "~row" is malformed: ')

    def test_classes_nobody_registered_are_refused(self):
        assert refusal(Lines()) == "value: Lines is not durable; pass a list, tuple, set or dict"

    @pytest.mark.parametrize("name", ["date", "any", "Row", "", "a b", "dict"])
    def test_names_must_be_free_and_lower_case(self, name):
        with pytest.raises(ValueError, match="cannot be named"):
            register_reference(name, Row, vars, Row)


class Text(str):
    pass


async def coroutine_function() -> None: ...


def unnamed_zone() -> ZoneInfo:
    """A zone made of a file, which no other process could find again."""
    content = b"TZif2" + bytes(15) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"XYZ\0"
    return ZoneInfo.from_file(BytesIO(content + content + b"\nXYZ0\n"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: float("nan"), "nan is not durable"),
            (lambda: -math.inf, "-inf is not durable"),
            (lambda: Decimal("NaN"), "Decimal('NaN') is not durable"),
            (lambda: Decimal("sNaN"), "Decimal('sNaN') is not durable"),
            (lambda: Decimal("-Infinity"), "Decimal('-Infinity') is not durable"),
            (lambda: function, "function is not durable"),
            (lambda: print, "function is not durable"),
            (lambda: [].append, "function is not durable"),
            (lambda: object(), "object is not durable"),
            (lambda: sys, "module is not durable"),
            (lambda: Money, "class Money is not durable; pass its name instead"),
            (lambda: (n for n in ()), "generator is not durable; pass a list, tuple, set or dict"),
            (lambda: range(3), "range is not durable; pass a list, tuple, set or dict"),
            (lambda: collections.deque(), "deque is not durable; pass a list, tuple, set or dict"),
            (lambda: {}.keys(), "dict_keys is not durable; pass a list, tuple, set or dict"),
            (lambda: bytearray(b""), "bytearray is not durable; pass bytes(value)"),
            (lambda: 1j, "complex is not durable"),
            (lambda: threading.Lock(), "lock is not durable"),
            (lambda: ValueError("x"), "ValueError is not durable"),
            (
                lambda: Text("x"),
                "Text is not durable; it is a subclass of str and would come back as str: pass plain str",
            ),
            (
                lambda: collections.OrderedDict(),
                "OrderedDict is not durable; it is a subclass of dict and would come back as dict: pass plain dict",
            ),
            (
                lambda: collections.defaultdict(list),
                "defaultdict is not durable; it is a subclass of dict and would come back as dict: pass plain dict",
            ),
            (
                lambda: Place(Money(1)),
                "Place is not durable; annotate the parameter, field or return value with Place so that it can be "
                "restored",
            ),
            (
                lambda: datetime(2024, 1, 1, tzinfo=unnamed_zone()),
                "datetime with a time zone of type zoneinfo.ZoneInfo is not durable; use datetime.timezone or "
                "zoneinfo.ZoneInfo",
            ),
        ],
    )
    def test_say_what_and_give_advice(self, make, message):
        value = make()
        assert refusal(value).removeprefix("value: ") == message
        assert refusal([value]).removeprefix("value[0]: ") == message

    def test_of_a_coroutine_advise_to_await_it(self):
        coroutine = coroutine_function()
        try:
            assert refusal(coroutine) == "value: coroutine is not durable; await it and pass its result"
        finally:
            coroutine.close()

    def test_of_lazy_text_advise_str(self):
        from django.utils.translation import gettext_lazy

        assert refusal(gettext_lazy("x")).endswith("pass what it stands for, such as str(value)")

    @pytest.mark.parametrize(
        ("value", "annotation", "path"),
        [
            ([{"lines": [1, 2, 3, {"fn": function}]}], None, "input[0].lines[3].fn"),
            ({"unit price": function}, None, "input['unit price']"),
            ({"~x": function}, None, "input['~x']"),
            ({1: (0, function)}, None, "input[1][1]"),
            ({(1, function): 1}, None, "input.keys()[0]"),
            ({"é\x00": {function}}, None, "input['\\xe9\\x00'][*]"),
            (Order("o", [Line("a", Decimal(1)), Line("b", function)]), Order, "input.lines[1].price"),
            ({"x": Refund("o", function)}, dict[str, Refund], "input.x.amount"),
            ((1, function), tuple[int, Order], "input[1]"),
            ({"note": "n", "lines": [function]}, Basket, "input.lines[0]"),
            ([float("nan")], None, "input[0]"),
        ],
    )
    def test_name_the_place(self, value, annotation, path):
        with pytest.raises(DurableValueError) as caught:
            encode(value, annotation, path="input")
        assert caught.value.path.startswith(path)
        assert str(caught.value).startswith(f"{path}")

    def test_are_type_errors_of_this_package(self):
        with pytest.raises(TypeError) as caught:
            encode(function)
        assert isinstance(caught.value, ContinuumError)

    def test_of_a_cycle_name_where_it_closes(self):
        inner: dict[str, Any] = {}
        inner["again"] = [inner]
        assert refusal({"a": inner}) == "value.a.again[0]: a value that contains itself (value.a) is not durable"

    def test_of_a_cycle_of_dataclasses(self):
        order = Order("o")
        order.parent = order
        assert refusal(order, Order) == "value.parent: a value that contains itself (value) is not durable"

    @pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: (x,), lambda x: {1: x}])
    def test_of_depth_come_at_200_levels(self, wrap):
        value: Any = wrap(1)
        for _ in range(199):
            value = wrap(value)
        assert_durable(value)
        message = refusal(wrap(value))
        assert "nested more than 200 levels deep is not durable" in message
        assert len(message) < 250

    def test_of_extreme_depth_are_no_recursion_errors(self):
        value: Any = None
        for _ in range(100_000):
            value = [value]
        assert "nested more than 200 levels" in refusal(value)
        while value:  # let go of it level by level
            value = value.pop()

    def test_of_size_say_how_much_is_too_much(self):
        assert encode("x" * 10, max_bytes=12) == '"xxxxxxxxxx"'
        assert refusal("x" * 2000, max_bytes=1000, path="input[1]") == (
            "input[1]: a value of 2,002 bytes is not durable: the limit is 1,000 bytes; store it elsewhere and pass "
            "the key that finds it"
        )


class TestForeignText:
    @pytest.mark.parametrize(
        "text",
        [
            '{"~date":"2024-13-01"}',
            '{"~date":5}',
            '{"~datetime":null}',
            '{"~datetime":{}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","zone":"../../etc/passwd"}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","zone":"Europe"}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","zone":"No/Where"}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","zone":5}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","fold":2}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","name":"X"}}',
            '{"~datetime":{"at":"2024-01-01T00:00:00","more":1}}',
            '{"~time":"25:00"}',
            '{"~timedelta":"1e3"}',
            '{"~timedelta":"999999999999999"}',
            '{"~decimal":"NaN"}',
            '{"~decimal":"1_000"}',
            '{"~decimal":1.5}',
            '{"~uuid":"x"}',
            '{"~uuid":"00000000000000000000000000000001"}',
            '{"~uuid":["00000000-0000-0000-0000-000000000001"]}',
            '{"~bytes":"***"}',
            '{"~bytes":"é"}',
            '{"~str":"\\\\x"}',
            '{"~str":"\\\\"}',
            '{"~str":1}',
            '{"~int":"12"}',
            '{"~int":12}',
            '{"~tuple":{}}',
            '{"~set":[[1]]}',
            '{"~set":[{}]}',
            '{"~dict":{}}',
            '{"~dict":[[1]]}',
            '{"~dict":[[[],1]]}',
            '{"~enum":"os:path"}',
            '{"~enum":["os:path","join"]}',
            '{"~enum":["os","path"]}',
            '{"~enum":["os:",""]}',
            '{"~enum":["enum:Enum","mro"]}',
            '{"~enum":["tests.test_values:Money","cents"]}',
            '{"~enum":["tests.test_values:Color","__class__"]}',
            '{"~enum":["tests.test_values:Color",["red"]]}',
            '{"~enum":["tests.test_values:Access",64]}',
            '{"~enum":["antigravity:Color","RED"]}',
            '{"~enum":[1,2]}',
        ],
    )
    def test_malformed_tags_are_rejected_with_the_place(self, text):
        for annotation in (None, Color, dict[str, Money], list[Money], Money, Money | Color):
            assert rejection(text, annotation).startswith(("value: ", "value[0]: "))
        assert rejection(f'{{"a":[0,{text}]}}').startswith("value.a[1]")

    @pytest.mark.parametrize("zone", ["../etc/passwd", "/etc/passwd", "os.path/x", "", "a//b", "a/b/"])
    def test_a_hostile_time_zone_never_reaches_the_file_system(self, zone):
        payload = {"~datetime": {"at": "2024-01-01T00:00:00", "zone": zone}}
        assert "(ValueError: not a time zone)" in rejection(json.dumps(payload))

    def test_nothing_is_imported(self):
        assert "is not loaded in this process" in rejection('{"~enum":["this:Color","RED"]}')
        assert "this" not in sys.modules

    def test_an_unknown_tag_is_named(self):
        assert rejection('[{"~newer":[1]}]') == ('value[0]: the tag "~newer" is unknown to this version of Continuum')

    @pytest.mark.parametrize("text", ["", "{", "[1,]", "nul", "NaN", "[Infinity]", "1 2", '"\x00"'])
    def test_what_is_no_json_is_rejected(self, text):
        assert rejection(text).startswith("value: no JSON: ")

    @pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"~any":' * 50_000 + "1" + "}" * 50_000])
    def test_bottomless_text_is_rejected(self, text):
        assert rejection(text) == "value: the JSON is nested too deeply"

    def test_white_space_does_not_matter(self):
        assert decode(' { "a" : [ { "~tuple" : [ 1 ] } ] }\n') == {"a": [(1,)]}

    def test_parts_can_be_restored_one_by_one(self):
        first, second = values.parse('[{"cents":1},{"~tuple":[1]}]')
        assert values.restore(first, Money) == Money(1)
        assert values.restore(second) == (1,)
        with pytest.raises(DurableValueError) as caught:
            values.restore({"a": {"~no": 1}}, path="input[0]")
        assert caught.value.path == "input[0].a"


class TestDisplay:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ({"a": [1, None]}, {"a": [1, None]}),
            ((1, {2}), [1, [2]]),
            (Decimal("1.50"), "1.50"),
            (Color.RED, "Color.RED"),
            (Mask(9), "tests.test_values:Mask(9)"),
            (date(2024, 1, 1), "2024-01-01"),
            (datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "2024-01-01T00:00:00 Europe/Paris"),
            (timedelta(seconds=90), "90 s"),
            (b"abc", "b'abc'"),
            ("a\x00", "a\\u0000"),
            ({1: "a", (2, 3): "b"}, {"1": "a", "[2, 3]": "b"}),
            ({1: "a", "1": "b"}, [[1, "a"], ["1", "b"]]),
            ({"~date": 5}, {"~date": 5}),
        ],
    )
    def test_shows_tags_readably(self, value, shown):
        assert display(encode(value)) == shown

    def test_shows_what_stands_in_for_itself(self):
        assert display(encode({"cents": 1}, Money)) == {"cents": 1}

    @pytest.mark.parametrize(
        "text",
        [
            "1e999",
            '{"~date":[]}',
            '{"~enum":[]}',
            '{"~dict":[[1]]}',
            '{"~datetime":{}}',
            '{"~new":{"~bytes":"*"}}',
            "[" * 100_000 + "]" * 100_000,
            "1" * 10_000,
            "no json",
        ],
    )
    def test_never_fails_and_gives_what_json_can_hold(self, text):
        json.dumps(display(text), allow_nan=False)


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


def flow(
    order: "Order", /, money: Money, *rest: Line, flag: bool = False, plain=None, **more: "Refund"
) -> "Order | None": ...


class Service:
    def method(self, money: Money) -> Color: ...

    def __call__(self, order: Order) -> Money: ...


class TestSignatures:
    def test_parameters_are_found_by_position_and_by_name(self):
        annotations = parameter_annotations(flow)
        assert [annotations.at(index) for index in range(4)] == [Order, Money, Line, Line]
        assert annotations.named("money") is Money
        assert annotations.named("flag") is bool
        assert annotations.named("plain") is None
        assert annotations.named("other") is Refund
        assert annotations.named("order") is Refund  # positional only: by name it is one of **more

    def test_return_values(self):
        def silent() -> None: ...

        def bare(): ...

        assert return_annotation(flow) == Order | None
        assert return_annotation(silent) is type(None)
        assert return_annotation(bare) is None

    def test_decorated_functions_are_looked_through(self):
        assert return_annotation(decorated(decorated(flow))) == Order | None
        assert parameter_annotations(decorated(flow)).at(1) is Money

    def test_partials_leave_out_what_they_fill_in(self):
        partial = functools.partial(functools.partial(decorated(flow), Order("o")), flag=True)
        assert parameter_annotations(partial).at(0) is Money
        assert parameter_annotations(partial).named("money") is Money
        assert return_annotation(partial) == Order | None

    def test_methods_leave_out_self(self):
        assert parameter_annotations(Service().method).at(0) is Money
        assert return_annotation(Service().method) is Color

    def test_callable_objects_count_by_their_call(self):
        assert parameter_annotations(Service()).at(0) is Order
        assert return_annotation(Service()) is Money

    def test_names_of_closures_are_known(self):
        @dataclass
        class Local:
            a: int

        def inner(value: "Local") -> "list[Local]":
            return [Local(value.a)]

        assert parameter_annotations(inner).at(0) is Local
        assert roundtrip([Local(1)], return_annotation(inner)) == [Local(1)]

    def test_one_unknown_name_does_not_spoil_the_others(self):
        def half(a: "Nowhere", b: "Money") -> "list[Nowhere]": ...  # noqa: F821

        assert parameter_annotations(half).at(1) is Money
        assert encode(1, parameter_annotations(half).at(0)) == "1"
        assert "its annotation 'list[Nowhere]' could not be resolved" in refusal([Money(1)], return_annotation(half))

    def test_a_name_defined_later_is_found_then(self, monkeypatch):
        def early() -> "DefinedLater": ...  # noqa: F821

        assert return_annotation(early) == "DefinedLater"
        monkeypatch.setitem(globals(), "DefinedLater", Money)
        assert return_annotation(early) is Money

    def test_builtin_functions_have_none(self):
        assert return_annotation(print) is None
        assert parameter_annotations(dict.fromkeys).at(0) is None


def test_threads_share_the_codec():
    @dataclass
    class Fresh:
        order: Order
        boxes: list[Box[Money]]

    value = Fresh(Order("o", [Line("a", Decimal(1))]), [Box(Money(1))])
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def work():
        try:
            barrier.wait()
            for _ in range(50):
                assert decode(encode(value, Fresh), Fresh) == value
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
