"""The statements of a search.

PostgreSQL cannot know how often one has to look along an index until enough rows meet a condition: whoever lets it
choose gets a millisecond for most searches and a walk over every run for some. So it is not left the choice. Where an
index has the order, a bounded number of runs is looked at in that order (``in_order``); what is too rare to be found so
is gathered by the index of what it is rare by, and sorted then (``gathered``), which PostgreSQL chooses well, anew
each time. What attributes alone were enough to find is gathered with a plan that is kept (``gathered_by_attributes``).

Names of namespaces and workflows stand in the text where their letters allow it without a doubt, everything else that
callers hand over is a parameter: how many runs there are of a name decides on the plan, so that a plan may be kept for
all other values, but not for all names.

Runs are looked for in the parts that indexes were made for: those that have ended apart from those that are live, those
that run apart from all others. Each text is a query of its own, so that each part gets a plan of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from continuum.models import Run
from continuum.search.conditions import ALL_STATES, Condition
from continuum.search.cursors import Position
from continuum.search.rows import columns

__all__ = [
    "ENDED",
    "LIVE",
    "Query",
    "Text",
    "counted",
    "counted_by_state",
    "ended_in_order",
    "gathered",
    "gathered_by_attributes",
    "in_order",
    "is_all_in_order",
    "is_by_attributes",
]

ENDED = frozenset(Run.TERMINAL_STATES)
LIVE = ALL_STATES - ENDED
RUNNING = frozenset({Run.State.RUNNING.value})

# Namespaces one after the other along an index, where a DISTINCT would read all of it.
_SPACES = """RECURSIVE spaces (namespace) AS (
    (SELECT namespace FROM continuum_runs ORDER BY namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > s.namespace ORDER BY r.namespace LIMIT 1)
    FROM spaces s WHERE s.namespace IS NOT NULL
)"""
# Nothing that could end a literal, be an escape, or a mark for a parameter.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
# What a subquery returns is not known to whoever plans: one run in a hundred is assumed to contain it. Said twice it is
# one in ten thousand, and no plan is thought to be so dear that PostgreSQL compiles it, among many million runs either.
_CONTAINED = "attributes @> (SELECT %s::jsonb) AND attributes @> (SELECT %s::jsonb)"
_CASTS = {"id": "uuid", "state": "text", "workflow": "text", "version": "bigint"}


class Text(NamedTuple):
    """A piece of SQL with its parameters."""

    sql: str
    params: tuple[Any, ...] = ()

    @classmethod
    def join(cls, separator: str, texts: Iterable[Text]) -> Text:
        """Return texts one behind the other."""
        texts = list(texts)
        return cls(separator.join(each.sql for each in texts), tuple(p for each in texts for p in each.params))

    def within(self, before: str, after: str = "") -> Text:
        """Return this text between two others, which have no parameters."""
        return Text(before + self.sql + after, self.params)


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for, in which order, and from where on.

    Attributes:
        namespace: None for all.
        conditions: what runs have to meet.
        states: those that runs may be in.
        column: what they are ordered by; those where it is null are left out.
        direction: ``asc`` or ``desc``.
        after: the position behind which to begin.
    """

    namespace: str | None
    conditions: tuple[Condition, ...]
    states: frozenset[str]
    column: str
    direction: str
    after: Position | None = None

    @property
    def bounds(self) -> list[Condition]:
        """The conditions that an index on the column walks along."""
        return [each for each in self.conditions if self._is_bound(each)]

    @property
    def rest(self) -> list[Condition]:
        """The conditions that remain to be looked at in each run; those on the state are covered by ``states``."""
        exact = ("eq", "in", "neq", "startswith")
        return [
            each
            for each in self.conditions
            if not self._is_bound(each) and not (each.column == "state" and each.operator in exact)
        ]

    @property
    def is_selective(self) -> bool:
        """Whether there is another index than that of the order to look along."""
        if self.states != ALL_STATES:
            return True
        return any(
            each.indexed
            or each.column in ("id", "started_at", "completed_at")
            or (each.column == "workflow" and each.operator in ("eq", "in"))
            for each in self.rest
        )

    @property
    def is_of_states(self) -> bool:
        """Whether nothing is asked but in which of some states runs are."""
        return not self.bounds and not self.rest

    def _is_bound(self, condition: Condition) -> bool:
        return condition.column == self.column and condition.operator in ("eq", "lt", "lte", "gt", "gte")

    @property
    def order(self) -> str:
        """The ORDER BY clause; the id decides between equals."""
        if self.column == "id":
            return f"ORDER BY id {self.direction}"
        return f"ORDER BY {self.column} {self.direction}, id {self.direction}"

    @property
    def stretch(self) -> list[Text]:
        """The conditions that a run has a place in the order, and comes behind ``after``."""
        placed = [Text("completed_at IS NOT NULL")] if self.column == "completed_at" else []
        if self.after is None:
            return placed
        sign = "<" if self.direction == "desc" else ">"
        if self.column == "id":
            return [Text(f"id {sign} %s::uuid", (str(self.after.id),))]
        cast = _CASTS.get(self.column, "timestamptz")
        return [
            *placed,
            Text(f"({self.column}, id) {sign} (%s::{cast}, %s::uuid)", (self.after.value, str(self.after.id))),
        ]


def in_order(query: Query, looked_at: int | None, wanted: int) -> Text:
    """Return the statement that finds runs along the index on ``started_at``, ``completed_at`` or ``id``.

    Args:
        query: what is looked for.
        looked_at: how many runs to look at, at most; None where every run on the way is one that is looked for.
        wanted: how many to return, at most.
    """
    hop = query.column != "id"
    bounds = [*_texts(query.bounds), *query.stretch]
    rest = _texts(query.rest)
    parts: list[list[Text]] = [[]]
    states = query.states
    if query.column == "started_at":
        parts = [[Text("state <> 'running'")]] if states - RUNNING else []
        parts += [[Text("state = 'running'")]] if states & RUNNING else []
        states |= RUNNING if states - RUNNING else ALL_STATES
    if states != ALL_STATES:
        rest.append(_in_states(query.states))
    if query.namespace is not None and not hop:
        rest.append(_is("namespace", query.namespace))
    limit = looked_at or wanted
    tail = f"{query.order} LIMIT {limit}"
    namespace = _namespace(query, hop) if hop else []
    found = _each_space(query, hop, [_select("*", [*namespace, *part, *bounds], tail) for part in parts])
    found = _select("*", [], tail, found.within("(", ") p"))
    return _with_spaces(query, hop, _select(columns("r"), rest, _page(query, wanted), found.within("(", ") r")))


def is_all_in_order(query: Query) -> bool:
    """Tell whether every run along the index is one that is looked for."""
    if query.column == "started_at":
        one_part = query.states in (RUNNING, ALL_STATES, ALL_STATES - RUNNING)
        return one_part and not query.rest
    return query.states == ALL_STATES and not query.rest and (query.column != "id" or query.namespace is None)


def ended_in_order(query: Query, workflows: Sequence[str], wanted: int) -> Text:
    """Return the statement that finds the ended runs of some workflows in the order they were started in.

    There must be no conditions but on workflow, state and ``started_at``. Live runs that are wanted too are gathered.
    """
    page = _page(query, wanted)
    bounds = [*_namespace(query, True), *_texts(query.bounds), *query.stretch]
    parts = [
        _select("*", [_is("workflow", name), Text(f"state = '{state}'"), *bounds], page)
        for name in workflows
        for state in sorted(query.states & ENDED)
    ]
    if query.states & LIVE:
        named = Text(f"workflow IN ({', '.join(['%s::text'] * len(workflows))})", tuple(workflows))
        live = _select("*", [_in_states(query.states & LIVE), named, *bounds], "OFFSET 0")
        parts.append(_select("*", [], page, live.within("(", ") l")))
    found = _each_space(query, True, parts)
    return _with_spaces(query, True, _select(columns("p"), [], page, found.within("(", ") p")))


def gathered(query: Query, wanted: int) -> Text:
    """Return the statement that gathers all runs that meet the conditions, and sorts them.

    OFFSET 0 keeps PostgreSQL from walking along the order instead. Whole rows are read once it is known which.
    """
    hop = _by_namespace(query)
    names = Text("id" if query.column == "id" else f"id, {query.column}")
    found = _each_space(query, hop, _arms(query, hop, names, query.stretch, "OFFSET 0"))
    page = _select("id", [], _page(query, wanted), found.within("(", ") f"))
    rows = page.within("(", ") page JOIN continuum_runs r USING (id)")
    return _with_spaces(query, hop, _select(columns("r"), [], query.order, rows))


def is_by_attributes(query: Query) -> bool:
    """Tell whether the attributes that runs must contain say all that is asked."""
    return bool(query.conditions) and all(each.contained is not None for each in query.conditions)


def gathered_by_attributes(query: Query, wanted: int) -> Text:
    """Return the statement that gathers the few runs whose attributes contain what is asked for, and sorts them.

    It has one plan for all values: OFFSET 0 leaves no index but that of the attributes. Few rows are sorted whole: that
    saves looking for them once more.
    """
    conditions = [Text(_CONTAINED, (each.contained, each.contained)) for each in query.conditions]
    found = _select("*", [Text("attributes <> '{}'::jsonb"), *conditions], "OFFSET 0").within("(", ") f")
    page = _select("*", [*_namespace(query, False), *query.stretch], _page(query, wanted), found)
    return _select(columns("p"), [], query.order, page.within("(", ") p"))


def counted(query: Query, group: Text | None) -> Text:
    """Return the statement that counts, all or for each value of ``group``."""
    hop = _by_namespace(query)
    names = Text("1 AS value") if group is None else group.within("", " AS value")
    found = _each_space(query, hop, _arms(query, hop, names, [], ""))
    if group is None:
        return _with_spaces(query, hop, found.within("SELECT count(*) FROM (", ") f"))
    return _with_spaces(query, hop, found.within("SELECT value, count(*) FROM (", ") f GROUP BY value"))


def counted_by_state(query: Query) -> Text:
    """Return the statement that counts for each state, where nothing else is asked: state by state along their index.

    That takes half the time of sorting all runs by the names of their states.
    """
    arms = [
        _select(f"'{state}'::text AS value, count(*) AS number", [*_namespace(query, True), _in_states([state])], "")
        for state in sorted(query.states)
    ]
    found = _each_space(query, True, arms).within("(", ") f GROUP BY value HAVING sum(number) > 0")
    return _with_spaces(query, True, found.within("SELECT value, sum(number)::bigint FROM "))


def _arms(query: Query, hop: bool, names: Text, also: list[Text], tail: str) -> list[Text]:
    """Return the queries of all runs that meet the conditions: of those that have ended, and of those that are live.

    What is looked up by nothing but attributes needs no index on the state.
    """
    conditions = [*_namespace(query, hop), *_texts(query.conditions), *also]
    if query.conditions and all(each.indexed for each in query.conditions):
        return [_select(names, conditions, tail)]
    states = [some for some in (query.states & ENDED, query.states & LIVE) if some]
    return [_select(names, [_in_states(some), *conditions], tail) for some in states]


def _by_namespace(query: Query) -> bool:
    """Tell whether to look in one namespace after the other: what is looked up by attributes is looked up once."""
    return not any(each.indexed for each in query.conditions)


def _namespace(query: Query, hop: bool) -> list[Text]:
    if query.namespace is not None:
        return [_is("namespace", query.namespace)]
    return [Text("namespace = spaces.namespace")] if hop else []


def _is(column: str, name: str) -> Text:
    """Return the condition that a column holds a name."""
    if _PLAIN_NAME.fullmatch(name):
        return Text(f"{column} = '{name}'::text")
    return Text(f"{column} = %s::text", (name,))


def _each_space(query: Query, hop: bool, arms: list[Text]) -> Text:
    """Return the union of some queries: within the namespace, or within each of all."""
    union = arms[0] if len(arms) == 1 else Text.join(" UNION ALL ", (arm.within("(", ")") for arm in arms))
    if hop and query.namespace is None:
        return union.within("SELECT u.* FROM spaces CROSS JOIN LATERAL (", ") u WHERE spaces.namespace IS NOT NULL")
    return union


def _with_spaces(query: Query, hop: bool, statement: Text) -> Text:
    return statement.within(f"WITH {_SPACES} ") if hop and query.namespace is None else statement


def _select(names: str | Text, conditions: list[Text], tail: str, source: Text | None = None) -> Text:
    names = Text(names) if isinstance(names, str) else names
    source = source or Text("continuum_runs")
    where = f" WHERE {' AND '.join([each.sql for each in conditions])}" if conditions else ""
    params = [*names.params, *source.params, *(param for each in conditions for param in each.params)]
    return Text(f"SELECT {names.sql} FROM {source.sql}{where} {tail}", tuple(params))


def _page(query: Query, wanted: int) -> str:
    return f"{query.order} LIMIT {wanted}"


def _texts(conditions: Iterable[Condition]) -> list[Text]:
    return [Text(each.sql, each.params) for each in conditions]


def _in_states(states: Iterable[str]) -> Text:
    """Return the condition on the state, said in full, so that PostgreSQL sees which partial indexes may serve."""
    return Text(f"state IN ({', '.join(repr(str(state)) for state in sorted(states))})")
