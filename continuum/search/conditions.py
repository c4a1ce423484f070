"""What a search may ask, checked and put into SQL.

The vocabulary is closed: names of columns and operators come from the tables below, everything that callers hand over
travels as a parameter, but for names whose letters mean nothing in SQL (see ``statements``). Every complaint names the
condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn
from uuid import UUID

from continuum.exceptions import InvalidQueryError
from continuum.models import Run
from continuum.moments import instant
from continuum.values.plain import UNSTORABLE, plain_value

__all__ = ["ALL_STATES", "COLUMNS", "Condition", "grouping", "ordering", "parse", "possible_states"]

#: Fields that can be asked for and ordered by, with the columns that hold them.
COLUMNS = {
    "id": "id",
    "run_id": "id",
    "state": "state",
    "workflow": "workflow",
    "version": "version",
    "started_at": "started_at",
    "completed_at": "completed_at",
}
ALL_STATES = frozenset(Run.State.values)

_COMPARISONS = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_ORDERED = ("lt", "lte", "gt", "gte")
_FIELD_OPERATORS = (*_COMPARISONS, "in")
_TEXT_OPERATORS = (*_FIELD_OPERATORS, "startswith")
_PATH_OPERATORS = (*_FIELD_OPERATORS, "exists")
_TYPES = {"id": "uuid", "state": "text", "workflow": "text", "version": "bigint"}
_DIRECTIONS = ("asc", "desc")

_MOST_VALUES = 1000
_DEEPEST_PATH = 100
# Beyond every version there can be, and within what PostgreSQL compares without leaving the integers.
_FARTHEST = 2**62


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a search.

    Attributes:
        operator: as the caller named it.
        column: the column it is about.
        sql: its text, with a mark for each parameter.
        params: the parameters.
        values: the operand, or the operands of ``in``, in the form of the parameters.
        indexed: whether the GIN index finds what meets it.
        contained: the JSON that attributes contain if they meet it, and only then; None where that cannot be said.
    """

    operator: str
    column: str
    sql: str
    params: tuple[Any, ...]
    values: tuple[Any, ...] = ()
    indexed: bool = False
    contained: str | None = None


def parse(where: Any) -> list[Condition]:
    """Return the conditions of a search.

    Args:
        where: ``(operator, field or path, operand)`` for each; a list or a tuple.

    Raises:
        InvalidQueryError: it cannot be asked; the message begins with ``where[<index>]``.
    """
    if not isinstance(where, list | tuple):
        raise InvalidQueryError(f"where must be a list of conditions such as ('eq', 'state', 'failed'), not {where!r}")
    return [_condition(f"where[{index}]", each) for index, each in enumerate(where)]


def ordering(order_by: Any) -> tuple[str, str]:
    """Return the direction and the column that a search is ordered by.

    Raises:
        InvalidQueryError: it is not a direction and a field of runs.
    """
    if not isinstance(order_by, list | tuple) or len(order_by) != 2:
        raise InvalidQueryError(f"order_by must be a pair such as ('desc', 'started_at'), not {order_by!r}")
    direction, field = order_by
    if not isinstance(direction, str) or direction not in _DIRECTIONS:
        raise InvalidQueryError(f"order_by: the direction must be 'asc' or 'desc', not {direction!r}")
    return str.__str__(direction), _column("order_by", field)


def grouping(group_by: Any) -> str | tuple[str, ...]:
    """Return the column, or the path within the attributes, that a count is grouped by.

    Raises:
        InvalidQueryError: it is neither.
    """
    if isinstance(group_by, list | tuple):
        return _path("group_by", group_by)
    return _column("group_by", group_by)


def _column(what: str, field: object) -> str:
    """Return the column of a field of runs.

    Raises:
        InvalidQueryError: there is no such field.
    """
    if not isinstance(field, str) or field not in COLUMNS:
        hint = ""
        if isinstance(field, str) and field.startswith("attributes"):
            hint = "; attributes are named by a path such as ['attributes', 'plan']"
        raise InvalidQueryError(f"{what}: {field!r} is not one of {', '.join(COLUMNS)}{hint}")
    return COLUMNS[field]


def _path(what: str, path: list[Any] | tuple[Any, ...]) -> tuple[str, ...]:
    """Return the keys of a path within the attributes.

    Raises:
        InvalidQueryError: it is no such path.
    """
    if len(path) < 2 or path[0] != "attributes":
        raise InvalidQueryError(f"{what}: a path is a list such as ['attributes', 'plan'], not {path!r}")
    if len(path) > _DEEPEST_PATH:
        raise InvalidQueryError(f"{what}: attributes are not nested deeper than {_DEEPEST_PATH} levels")
    for key in path[1:]:
        if not isinstance(key, str):
            raise InvalidQueryError(f"{what}: the keys of a path are strings, not {key!r}")
        if UNSTORABLE.search(key):
            raise InvalidQueryError(f"{what}: no attribute has NUL or a lone surrogate in its key: {key!r}")
    return tuple(str.__str__(key) for key in path[1:])


def possible_states(conditions: list[Condition]) -> frozenset[str]:
    """Return the states that a run may be in to meet the conditions on its state, as far as that can be told here."""
    states = ALL_STATES
    for each in conditions:
        if each.column != "state":
            continue
        if each.operator in ("eq", "in"):
            states &= frozenset(each.values)
        elif each.operator == "neq":
            states -= frozenset(each.values)
        elif each.operator == "startswith":
            states = frozenset(state for state in states if state.startswith(each.values[0]))
    return states


def _condition(what: str, condition: Any) -> Condition:
    if not isinstance(condition, list | tuple) or len(condition) not in (2, 3) or not isinstance(condition[0], str):
        raise InvalidQueryError(f"{what}: a condition is (operator, field or path, operand), not {condition!r}")
    operator, subject, *operands = condition
    operator = str.__str__(operator)
    is_path = isinstance(subject, list | tuple)
    allowed = _PATH_OPERATORS if is_path else _FIELD_OPERATORS
    if not is_path and _column(what, subject) in ("workflow", "state"):
        allowed = _TEXT_OPERATORS
    if operator not in allowed:
        kind = "a path" if is_path else str(subject)
        raise InvalidQueryError(f"{what}: {kind} does not take {operator!r}, but {', '.join(allowed)}")
    if operator == "exists":
        return _exists(what, _path(what, subject), operands)
    if not operands:
        raise InvalidQueryError(f"{what}: {operator} needs an operand: (operator, field or path, operand)")
    (operand,) = operands
    if operator == "in":
        operand = _several(what, operand)
    if is_path:
        return _of_path(what, operator, _path(what, subject), operand)
    return _of_field(what, operator, str.__str__(subject), operand)


def _several(what: str, operand: Any) -> list[Any]:
    if not isinstance(operand, list | tuple | set | frozenset):
        raise InvalidQueryError(f"{what}: in takes a list of values, not {operand!r}")
    if len(operand) > _MOST_VALUES:
        raise InvalidQueryError(f"{what}: in takes up to {_MOST_VALUES:,} values, not {len(operand):,}")
    return list(operand)


def _of_field(what: str, operator: str, field: str, operand: Any) -> Condition:
    column = COLUMNS[field]
    mark = f"%s::{_TYPES.get(column, 'timestamptz')}"
    given = operand if operator == "in" else [operand]
    values = tuple(_value(f"{what}: {field}", column, operator, each) for each in given)
    if operator == "in":
        sql = f"{column} IN ({', '.join([mark] * len(values))})" if values else "false"
    elif operator == "startswith":
        sql = f"starts_with({column}, {mark})"
    else:
        sql = f"{column} {_COMPARISONS[operator]} {mark}"
    return Condition(operator, column, sql, values, values)


def _value(what: str, column: str, operator: str, value: Any) -> Any:
    if column == "id":
        return _id(what, value)
    if column == "version":
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(what, "an int", value)
        return max(-_FARTHEST, min(int(value), _FARTHEST))
    if column in ("started_at", "completed_at"):
        return _moment(what, value)
    if not isinstance(value, str):
        _refuse(what, "a string", value)
    if UNSTORABLE.search(value):
        raise InvalidQueryError(f"{what} holds neither NUL nor lone surrogates: {value!r}")
    if column == "state" and operator in ("eq", "neq", "in") and value not in ALL_STATES:
        raise InvalidQueryError(f"{what} is one of {', '.join(Run.State.values)}, not {str.__str__(value)!r}")
    return str.__str__(value)


def _id(what: str, value: Any) -> str:
    if isinstance(value, Run):
        value = value.id
    if isinstance(value, str):
        with suppress(ValueError):
            value = UUID(value)
    if not isinstance(value, UUID):
        _refuse(what, "a UUID or its string", value)
    return str(value)


def _moment(what: str, value: Any) -> datetime:
    if not isinstance(value, datetime):
        _refuse(what, "an aware datetime", value)
    try:
        return instant(value)
    except ValueError:
        _refuse(what, "an aware datetime", value)
    except OverflowError:
        raise InvalidQueryError(f"{what}: {value!r} is out of range") from None


def _refuse(what: str, wanted: str, value: Any) -> NoReturn:
    raise InvalidQueryError(f"{what} is compared with {wanted}, not with {value!r}")


def _exists(what: str, path: tuple[str, ...], operands: list[Any]) -> Condition:
    wanted = operands[0] if operands else True
    if not isinstance(wanted, bool):
        raise InvalidQueryError(f"{what}: exists takes True or False, or nothing, not {wanted!r}")
    return Condition("exists", "attributes", f"{_at(path)} IS {'NOT ' if wanted else ''}NULL", path)


def _of_path(what: str, operator: str, path: tuple[str, ...], operand: Any) -> Condition:
    if operator in ("eq", "in"):
        given = operand if operator == "in" else [operand]
        parts = [_equal(path, _json(what, each), each) for each in given]
        sql = " OR ".join(part.sql for part in parts) or "false"
        params = tuple(_each_param(parts))
        # Without this, which the containment implies, PostgreSQL does not know that the index has what is sought.
        indexed = bool(parts) and all(part.indexed for part in parts)
        if indexed:
            sql = f"attributes <> '{{}}'::jsonb AND ({sql})"
        contained = parts[0].contained if operator == "eq" else None
        return Condition(operator, "attributes", f"({sql})", params, indexed=indexed, contained=contained)
    text = _json(what, operand)
    compared = f"{_at(path)} {_COMPARISONS[operator]} %s::jsonb"
    if operator == "neq":
        return Condition(operator, "attributes", compared, (*path, text))
    kind = _kind(operand)
    if kind is None:
        raise InvalidQueryError(f"{what}: {operator} compares numbers, strings or booleans, not {operand!r}")
    sql = f"(jsonb_typeof({_at(path)}) = '{kind}' AND {compared})"
    return Condition(operator, "attributes", sql, (*path, *path, text))


def _each_param(conditions: list[Condition]) -> Iterator[Any]:
    for condition in conditions:
        yield from condition.params


def _equal(path: tuple[str, ...], text: str, value: Any) -> Condition:
    """Return the condition that the attribute at ``path`` is ``value``, which is ``text`` in JSON."""
    exact = f"{_at(path)} = %s::jsonb"
    if not _has_leaf(value):
        return Condition("eq", "attributes", exact, (*path, text))
    whole = "".join(f"{{{plain_value('key', key)}:" for key in path) + text + "}" * len(path)
    if not isinstance(value, list | dict):
        return Condition("eq", "attributes", "attributes @> %s::jsonb", (whole,), indexed=True, contained=whole)
    # A list or an object that contains another need not equal it.
    return Condition("eq", "attributes", f"(attributes @> %s::jsonb AND {exact})", (whole, *path, text), indexed=True)


def _has_leaf(value: Any) -> bool:
    """Tell whether a value has anything in it that the index has an entry for."""
    if isinstance(value, dict):
        return any(map(_has_leaf, value.values()))
    return any(map(_has_leaf, value)) if isinstance(value, list) else True


def _at(path: tuple[str, ...]) -> str:
    """Return the expression of what is at a path. ``->`` with a text finds keys of objects, never items of arrays."""
    return f"(attributes{' -> %s::text' * len(path)})"


def _kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else None


def _json(what: str, value: Any) -> str:
    try:
        return plain_value("attributes", value)
    except (TypeError, ValueError) as error:
        raise InvalidQueryError(f"{what}: {error}") from None
