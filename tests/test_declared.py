"""What fits a declared type, and how the type is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import pytest

from continuum.declared import described, misfit

Cents = NewType("Cents", int)
T = TypeVar("T")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Colour(Enum):
    RED = "red"


@dataclass
class Line:
    cents: int


MAYBE_LINE = Optional[Line]  # noqa: UP045 - not the same as Line | None
EITHER = Union[list[int], str]  # noqa: UP007


class Point(NamedTuple):
    x: int


class Address(TypedDict):
    city: str
    lines: NotRequired[list[int]]


class Greeter(Protocol):
    def greet(self) -> str: ...


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, object()),
        (object, 1),
        (None, None),
        (int, 1),
        (float, 1),
        (Decimal, Decimal(1)),
        (date, NOW),
        (Colour, Colour.RED),
        (MAYBE_LINE, None),
        (Line | None, Line(1)),
        (EITHER, [1]),
        (Literal["a", 1], 1),
        (Annotated[int, "cents"], 1),
        (Annotated[int | None, "cents"], None),
        (Cents, 1),
        (list, ["anything"]),
        (list[Line], [Line(1)]),
        (list[T], ["anything"]),
        (tuple[int, ...], (1, 2)),
        (tuple[int, str], (1, "a")),
        (set[int], {1}),
        (Sequence[int], [1]),
        (Sequence[str], "text"),
        (dict[str, list[int]], {"a": [1]}),
        (Mapping[str, Any], {"a": object()}),
        (Point, Point(1)),
        (Address, {"city": "Ulm"}),
        (Address, {"city": "Ulm", "lines": [1]}),
        (Greeter, object()),
        ("Line", 5),
        (T, 5),
    ],
)
def test_what_fits(annotation, value):
    assert misfit(annotation, value) is None


@pytest.mark.parametrize(
    ("annotation", "value", "path"),
    [
        (None, 1, "payload"),
        (int, True, "payload"),
        (int, 1.0, "payload"),
        (str, None, "payload"),
        (datetime, date(2026, 1, 1), "payload"),
        (Colour, "red", "payload"),
        (Line, {"cents": 1}, "payload"),
        (MAYBE_LINE, 1, "payload"),
        (EITHER, ["a"], "payload"),
        (Literal["a", 1], True, "payload"),
        (Annotated[int, "cents"], "1", "payload"),
        (Cents, "1", "payload"),
        (list[Line], [Line(1), 1], "payload[1]"),
        (tuple[int, ...], [1], "payload"),
        (tuple[int, ...], (1, "a"), "payload[1]"),
        (tuple[int, str], (1,), "payload"),
        (tuple[int, str], (1, 2), "payload[1]"),
        (set[int], {"a"}, "a part of payload"),
        (Sequence[int], ["a"], "payload[0]"),
        (dict[str, list[int]], {"a": [1, "b"]}, "payload.a[1]"),
        (dict[str, int], {1: 1}, "the key 1 of payload"),
        (dict[int, int], {1: "a"}, "payload[1]"),
        (Callable, 3, "payload"),
        (Address, [], "payload"),
        (Address, {"lines": [1]}, "payload"),
        (Address, {"city": "Ulm", "lines": ["a"]}, "payload.lines[0]"),
    ],
)
def test_what_does_not_fit_and_where(annotation, value, path):
    found = misfit(annotation, value)
    assert found is not None
    assert found[0] == path


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (None, "None"),
        (Line, "Line"),
        (MAYBE_LINE, "Line | None"),
        (float | None, "float | None"),
        (list[Line], "list[Line]"),
        (dict[str, tuple[int, ...]], "dict[str, tuple[int, ...]]"),
        (Annotated[int, "cents"], "int"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Cents, "Cents"),
        (Any, "Any"),
        (T, "T"),
        ("Line", "Line"),
    ],
)
def test_a_type_is_called_as_it_is_written(annotation, name):
    assert described(annotation) == name
