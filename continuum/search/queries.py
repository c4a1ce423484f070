"""Finding runs: by what they are and by their attributes, page by page, in milliseconds also among millions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from continuum import arguments
from continuum.exceptions import InvalidQueryError
from continuum.models import Run
from continuum.search import cursors
from continuum.search.conditions import Condition, grouping, ordering, parse, possible_states
from continuum.search.cursors import Position
from continuum.search.groups import expression, key_of
from continuum.search.habits import Habits
from continuum.search.rows import runs_of
from continuum.search.statements import (
    LIVE,
    Query,
    Text,
    counted,
    counted_by_state,
    ended_in_order,
    gathered,
    gathered_by_attributes,
    in_order,
    is_all_in_order,
    is_by_attributes,
)
from continuum.statements import all_rows

__all__ = ["Page", "acount", "aquery", "count", "query"]

_MOST_ON_A_PAGE = 100

# How many runs are looked at in order before another way is tried, and how many at most if so many hits at the first
# look, or the lack of another way, speak for it. To look at a run takes most of a microsecond.
_FIRST_LOOK = 200
_LONGEST_LOOK = 20_000
_PROMISING = 3
#: Searches by attributes too rare to be come across in order: looking there first takes as long as finding them.
HABITS = Habits(quick=0.01)

# Indexes are walked along for each pair of a workflow and a state.
_MOST_WORKFLOWS = 10


@dataclass(frozen=True, slots=True)
class Page:
    """One page of what was found.

    Attributes:
        entries: the runs, in order.
        next_cursor: what to ask for the next page with; None on the last.
        per_page: how many runs there are on a page, at most.
    """

    entries: list[Run]
    next_cursor: str | None
    per_page: int


def query(
    namespace: str | None = "default",
    where: Sequence[tuple[Any, ...]] = (),
    order_by: tuple[str, str] = ("desc", "started_at"),
    per_page: int = 25,
    cursor: str | None = None,
    *,
    using: str | None = None,
) -> Page:
    """Return a page of the runs that meet all conditions.

        page = continuum.query(where=[("eq", "state", "failed"), ("eq", ["attributes", "plan"], "pro")])
        page = continuum.query(where=..., cursor=page.next_cursor)

    Args:
        namespace: where the runs are; None for all namespaces.
        where: conditions ``(operator, field, operand)``. Fields are ``id`` (or ``run_id``), ``state``, ``workflow``,
            ``version``, ``started_at`` and ``completed_at`` with ``eq neq lt lte gt gte in``, workflow and state also
            with ``startswith``; and paths such as ``["attributes", "plan"]`` with ``eq neq lt lte gt gte in exists``,
            which keep JSON types apart.
        order_by: ``("desc" or "asc", field)``. The id decides between equals; runs without a value come last.
        per_page: runs on a page, at least 1; more than 100 are taken as 100.
        cursor: ``next_cursor`` of the page before, asked for in the same order.
        using: database alias.

    Returns:
        The page. Runs that begin or end meanwhile neither repeat nor displace others on later pages.

    Raises:
        InvalidQueryError: it cannot be asked; the message names the condition (it is a ``ValueError`` too).
        TypeError, ValueError: the namespace is wrong.
    """
    direction, column = ordering(order_by)
    if isinstance(per_page, bool) or not isinstance(per_page, int) or per_page < 1:
        raise InvalidQueryError(f"per_page must be an int of at least 1, not {per_page!r}")
    size = min(int(per_page), _MOST_ON_A_PAGE)
    after = None if cursor is None else cursors.read(direction, column, cursor)
    wanted = _query(namespace, where, direction, column, after)
    alias = arguments.alias_for(using)
    rows = _found(alias, wanted, size + 1)
    runs = runs_of(rows[:size], alias)
    following = None
    if len(rows) > size:
        last = runs[-1]
        following = cursors.write(direction, column, Position(getattr(last, column), last.id))
    return Page(runs, following, size)


def count(
    namespace: str | None = "default",
    where: Sequence[tuple[Any, ...]] = (),
    group_by: str | Sequence[str] | None = None,
    *,
    using: str | None = None,
) -> int | dict[Any, int]:
    """Count the runs that meet all conditions: exactly, and so reading each of them.

        continuum.count(where=[("eq", "state", "failed")], group_by=["attributes", "plan"])  # {"pro": 2, "free": 40}

    Args:
        namespace: where the runs are; None for all namespaces.
        where: conditions as for :func:`query`.
        group_by: a field, or a path within the attributes, to count the runs for each value of.
        using: database alias.

    Returns:
        The number; with ``group_by`` a dict with the number for each value there is. None stands for no value. As keys
        of a dict, lists come as tuples, objects as tuples of pairs, and 1 and True are the same.

    Raises:
        InvalidQueryError, TypeError, ValueError: as for :func:`query`.
    """
    group = None if group_by is None else grouping(group_by)
    wanted = _query(namespace, where, "desc", "id", None)
    alias = arguments.alias_for(using)
    if group is None:
        return _rows(alias, counted(wanted, None))[0][0] if wanted.states else 0
    numbers: dict[Any, int] = {}
    if wanted.states:
        by_state = group == "state" and wanted.is_of_states
        statement = counted_by_state(wanted) if by_state else counted(wanted, Text(*expression(group)))
        for value, number in _rows(alias, statement):
            key = key_of(group, value)
            numbers[key] = numbers.get(key, 0) + number
    return numbers


async def aquery(
    namespace: str | None = "default",
    where: Sequence[tuple[Any, ...]] = (),
    order_by: tuple[str, str] = ("desc", "started_at"),
    per_page: int = 25,
    cursor: str | None = None,
    *,
    using: str | None = None,
) -> Page:
    """The async twin of :func:`query`."""
    return await sync_to_async(query)(namespace, where, order_by, per_page, cursor, using=using)


async def acount(
    namespace: str | None = "default",
    where: Sequence[tuple[Any, ...]] = (),
    group_by: str | Sequence[str] | None = None,
    *,
    using: str | None = None,
) -> int | dict[Any, int]:
    """The async twin of :func:`count`."""
    return await sync_to_async(count)(namespace, where, group_by, using=using)


def _query(namespace: str | None, where: Any, direction: str, column: str, after: Position | None) -> Query:
    conditions = tuple(parse(where))
    namespace = arguments.namespace_filter(namespace)
    return Query(namespace, conditions, possible_states(list(conditions)), column, direction, after)


def _found(alias: str, wanted: Query, limit: int) -> list[tuple[Any, ...]]:
    """Return the rows of a page; those without a value in the column that they are ordered by come last."""
    if not wanted.states:
        return []
    if wanted.column != "completed_at":
        return _searched(alias, wanted, limit)
    rows: list[tuple[Any, ...]] = []
    after = wanted.after
    if after is None or after.value is not None:
        rows = _searched(alias, wanted, limit)
        after = None
    if len(rows) < limit and not any(each.column == "completed_at" for each in wanted.conditions):
        unset = Condition("unset", "completed_at", "completed_at IS NULL", ())
        unended = replace(wanted, conditions=(unset, *wanted.conditions), column="id", after=after)
        rows += _rows(alias, gathered(unended, limit - len(rows)))
    return rows


def _searched(alias: str, wanted: Query, limit: int) -> list[tuple[Any, ...]]:
    if wanted.column not in ("started_at", "completed_at", "id") or _names_runs(wanted):
        return _rows(alias, gathered(wanted, limit))
    if is_all_in_order(wanted):
        return _rows_of_one_plan(alias, in_order(wanted, None, limit))
    workflows = _workflows(wanted)
    if workflows and not wanted.states & LIVE:
        return _rows_of_one_plan(alias, ended_in_order(wanted, workflows, limit))
    kind = (alias, replace(wanted, after=None))
    if kind in HABITS:
        return _gathered_again(alias, kind, wanted, limit)
    rows = _rows_of_one_plan(alias, in_order(wanted, _FIRST_LOOK, limit))
    if len(rows) < limit and (further := _further_look(wanted, len(rows), limit)):
        rows = _rows_of_one_plan(alias, in_order(wanted, further, limit))
    if len(rows) == limit:
        return rows
    if workflows:
        return _rows(alias, ended_in_order(wanted, workflows, limit))
    if not any(each.indexed for each in wanted.rest):
        return _rows(alias, gathered(wanted, limit))
    return HABITS.gather(kind, lambda: _rows(alias, gathered(wanted, limit)))


def _gathered_again(alias: str, kind: tuple[str, Query], wanted: Query, limit: int) -> list[tuple[Any, ...]]:
    """Gather what was gathered quickly before: by the index of attributes, its plan kept, for as long as that is quick.

    It need not be: a namespace with few runs is soon read, whatever attribute the runs of all others bear.
    """
    kept = ("a plan that is kept", kind)
    if not is_by_attributes(wanted) or HABITS.is_slow(kept):
        return HABITS.gather(kind, lambda: _rows(alias, gathered(wanted, limit)))
    rows = HABITS.gather(kept, lambda: _rows_of_one_plan(alias, gathered_by_attributes(wanted, limit)))
    if kept not in HABITS:
        HABITS.forget(kind)
    return rows


def _further_look(wanted: Query, hits: int, limit: int) -> int:
    """Return how many runs to look at after a first look that had some hits, but too few; 0 if that is not worth it."""
    if wanted.namespace is None:
        return 0  # so many would be looked at in each namespace
    if hits >= _PROMISING:
        # As many as it takes if hits go on to be as frequent, and as many again.
        return min(_LONGEST_LOOK, ceil(2 * _FIRST_LOOK * limit / hits))
    return 0 if wanted.is_selective else _LONGEST_LOOK


def _names_runs(wanted: Query) -> bool:
    return any(each.column == "id" and each.operator in ("eq", "in") for each in wanted.conditions)


def _workflows(wanted: Query) -> list[str]:
    """Return the workflows to look along the index of, if that index alone tells all that is asked."""
    if wanted.column != "started_at":
        return []
    names: set[str] | None = None
    for each in wanted.rest:
        if each.column != "workflow" or each.operator not in ("eq", "in"):
            return []
        names = set(each.values) if names is None else names & set(each.values)
    return sorted(names) if names and len(names) <= _MOST_WORKFLOWS else []


def _rows_of_one_plan(alias: str, statement: Text) -> list[tuple[Any, ...]]:
    """Return the rows of a statement that says itself by which index to look, and how far, whatever the values."""
    return all_rows(alias, statement.sql, statement.params)


def _rows(alias: str, statement: Text) -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement.sql, statement.params)
        return cursor.fetchall()
