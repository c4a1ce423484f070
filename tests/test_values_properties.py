"""Durable values, as properties: whatever the value, it comes back equal, of the same types, from the same text."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from continuum.exceptions import DurableValueError
from continuum.values import decode, display, encode, encode_plain, parse, restore
from continuum.values.jsontext import dump
from continuum.values.trees import to_tree

# How long an example takes says more about what else the machine does than about the codec.
patient = partial(settings, deadline=None, suppress_health_check=[HealthCheck.too_slow])

T = TypeVar("T")


class Kind(enum.Enum):
    A = "a"
    B = 2
    C = (1, "x")


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    ADMIN = 4


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"
    NO = "no"


@dataclass
class Leaf:
    name: str
    kind: Kind
    extra: Any = None


@dataclass(frozen=True, slots=True)
class Stamp:
    at: datetime
    by: Word | None = None


@dataclass
class Pair(Generic[T]):
    first: T
    second: T
    swapped: bool = field(init=False, default=False)


class Slot(NamedTuple):
    stamp: Stamp
    rank: int = 0


@dataclass
class Branch:
    leaves: list[Leaf]
    below: dict[str, Branch]
    stamped: Pair[Stamp | None] | None = None
    slots: tuple[Slot, ...] = ()
    either: Leaf | Stamp | str | None = None


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal down to types, signs of zero, order of keys, zones and folds."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, datetime | time):
        zones = (left.tzinfo, right.tzinfo)
        same_zone = zones[0] is zones[1] if isinstance(zones[0], ZoneInfo) else str(zones[0]) == str(zones[1])
        return same_zone and left.fold == right.fold and left.replace(tzinfo=None) == right.replace(tzinfo=None)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, set | frozenset):
        return len(left) == len(right) and all(any(same(a, b) for b in right if a == b) for a in left)
    if is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    return left == right


zones = st.one_of(
    st.none(),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]).map(ZoneInfo),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    st.builds(timezone, st.just(timedelta(hours=1)), st.text("ABC", min_size=1)),
)
strings = st.one_of(
    st.text(st.characters(exclude_categories=())),  # lone surrogates included
    st.text(st.sampled_from('~\\u0\x00\ud83d\ude00"{}é')),
    st.sampled_from(["~any", "~date", "~dict", "~", ""]),
)
integers = st.integers() | st.builds(
    lambda bits, more: (more << bits) - more, st.integers(2000, 12_000), st.integers(-9, 9)
)
hashable = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    st.floats(allow_nan=False, allow_infinity=False),
    strings,
    st.binary(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.builds(lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, st.integers(0, 1)),
    st.builds(lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.times(), zones, st.integers(0, 1)),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([*Kind, *Level, *Word, Rights(0), Rights.READ | Rights.ADMIN, Rights.WRITE]),
)
keys = hashable | st.deferred(lambda: st.tuples(keys) | st.tuples(hashable, keys) | st.frozensets(keys, max_size=3))
values = keys | st.deferred(
    lambda: st.one_of(
        st.lists(values, max_size=3),
        st.lists(values, max_size=3).map(tuple),
        st.dictionaries(strings, values, max_size=3),
        st.dictionaries(keys, values, max_size=3),
        st.sets(keys, max_size=4),
    )
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), strings),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(strings, inner)),
    max_leaves=20,
)


# Composite strategies, because the others describe themselves in full, over and over again.
@st.composite
def leaves(draw: st.DrawFn) -> Leaf:
    return Leaf(draw(strings), draw(st.sampled_from(Kind)), draw(values))


@st.composite
def stamps(draw: st.DrawFn) -> Stamp:
    return Stamp(draw(st.datetimes()), draw(st.none() | st.sampled_from(Word)))


@st.composite
def pairs(draw: st.DrawFn) -> Pair[Stamp | None]:
    pair = Pair(draw(st.none() | stamps()), draw(st.none() | stamps()))
    pair.swapped = draw(st.booleans())
    return pair


@st.composite
def slots(draw: st.DrawFn) -> Slot:
    return Slot(draw(stamps()), draw(st.integers()))


@st.composite
def branches(draw: st.DrawFn, depth: int = 2) -> Branch:
    look_alikes = st.dictionaries(st.sampled_from(["at", "by", "name"]), st.integers())
    return Branch(
        draw(st.lists(leaves(), max_size=2)),
        draw(st.dictionaries(strings, branches(depth - 1), max_size=2)) if depth else {},
        draw(st.none() | pairs()),
        draw(st.lists(slots(), max_size=2).map(tuple)),
        draw(st.one_of(st.none(), strings, leaves(), stamps(), look_alikes)),
    )


@st.composite
def anything(draw: st.DrawFn) -> Any:
    return draw(values)


annotated = st.one_of(
    st.tuples(branches(), st.sampled_from([Branch, Branch | None, Branch | Stamp | dict])),
    st.tuples(st.lists(leaves() | stamps() | anything(), max_size=3), st.just(list[Leaf | Stamp])),
    st.tuples(st.dictionaries(keys, pairs(), max_size=2), st.just(dict[Any, Pair[Stamp | None]])),
    st.tuples(st.tuples(slots(), anything()), st.just(tuple[Slot, Any])),
    st.tuples(st.sets(stamps() | keys, max_size=3), st.just(set[Stamp])),
)
annotations = st.sampled_from(
    [
        *(Branch, Leaf | Stamp, list[Leaf], dict[str, Stamp], dict[Kind, Word], Kind, Word | None, Level | Word, Slot),
        *(Pair, Rights, tuple[Leaf, Kind], set[Stamp], Leaf | dict[str, Stamp], list[Stamp] | tuple[Leaf, ...]),
    ]
)


def shuffled(value: Any) -> Any:
    """An equal value whose sets were filled in another order."""
    if isinstance(value, list | tuple):
        return type(value)(map(shuffled, value))
    if isinstance(value, dict):
        return {shuffled(key): shuffled(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return type(value)(shuffled(item) for item in sorted(value, key=repr, reverse=True))
    return value


@patient()
@given(values)
def test_every_value_comes_back_the_same(value: Any) -> None:
    assert same(decode(encode(value)), value)


@patient()
@given(values, annotations)
def test_an_annotation_that_does_not_fit_changes_nothing(value: Any, annotation: Any) -> None:
    assert same(decode(encode(value, annotation), annotation), value)


@patient()
@given(annotated)
def test_annotated_values_come_back_the_same(case: tuple[Any, Any]) -> None:
    value, annotation = case
    text = encode(value, annotation)
    assert same(decode(text, annotation), value)
    assert same(restore(parse(text), annotation), value)


@patient()
@given(values)
def test_equal_values_have_the_same_text(value: Any) -> None:
    assert encode(shuffled(value)) == encode(value)
    assert encode(decode(encode(value))) == encode(value)


@patient()
@given(values)
def test_a_value_has_the_same_text_alone_and_inside_another(value: Any) -> None:
    assert encode([value, {"key": value}]) == f'[{encode(value)},{{"key":{encode(value)}}}]'


@patient()
@given(values | st.integers(10**18 - 9, 10**18 + 9) | st.text(st.sampled_from('a~\0\ud800\u00e9\u2028\\"u')))
def test_the_short_way_writes_what_the_long_way_does_or_leaves_it_to_that(value: Any) -> None:
    assert encode_plain(value) in (None, dump(to_tree(value)))


@pytest.mark.parametrize("value", [0, -1, 10**17, True, None, 1.5, "", "é", "a\\u", [1, "a"], {"a": [1]}])
def test_the_short_way_is_taken_by_plain_values(value: Any) -> None:
    assert encode_plain(value) == json.dumps(value, separators=(",", ":"))


@patient()
@given(json_values)
def test_plain_json_is_written_as_json_does(value: Any) -> None:
    text = encode(value)
    assert same(decode(text), value)
    if "~" not in text:
        assert text == json.dumps(value, separators=(",", ":"))


@patient()
@given(values)
def test_postgresql_can_read_every_string(value: Any) -> None:
    text = encode(value)
    assert text.isascii()
    unescaped = text.replace("\\\\", "")
    assert "\\u0000" not in unescaped
    for high, low in re.findall(r"(\\ud[89ab]..)?(\\ud[c-f]..)?", unescaped):
        assert bool(high) == bool(low)


@patient()
@given(values)
@example({"~any": 1})
def test_people_are_shown_plain_json(value: Any) -> None:
    json.dumps(display(encode(value)), allow_nan=False)


TAGS = (
    "~any ~bytes ~date ~datetime ~decimal ~dict ~enum ~frozenset ~int ~set ~str ~time ~timedelta ~tuple ~uuid ~other "
    "at zone fold name kind extra by first second leaves below"
)
tags = st.sampled_from(TAGS.split())
hostile = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
        st.sampled_from(["2024-01-01", "12:00", "1.5", "0x1f", "YWJj", "os:path", f"{__name__}:Kind", "A", "\\u0041"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(tags, inner, max_size=2), st.dictionaries(tags, inner, max_size=1)
    ),
    max_leaves=10,
)


@patient(max_examples=300)
@given(hostile, st.none() | annotations)
def test_any_json_is_read_or_rejected(tree: Any, annotation: Any) -> None:
    text = json.dumps(tree)
    try:
        value = decode(text, annotation)
    except DurableValueError:
        pass
    else:
        assert same(decode(encode(value, annotation), annotation), value)
    json.dumps(display(text), allow_nan=False)


@patient()
@given(values, st.sampled_from([lambda: object(), lambda: float("nan"), lambda: test_any_json_is_read_or_rejected]))
def test_what_is_refused_is_refused_wherever_it_stands(value: Any, make: Callable[[], Any]) -> None:
    for place, holder in (("value[1]", [value, make()]), ("value.a", {"a": make(), "b": value})):
        with pytest.raises(DurableValueError) as caught:
            encode(holder)
        assert caught.value.path == place
