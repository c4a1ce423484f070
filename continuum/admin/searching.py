"""The search box above the list of runs: ids, names of workflows, and attributes as ``key:value``."""

from __future__ import annotations

import json
import re
import shlex
from functools import reduce
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import Q, QuerySet

from continuum.admin.filters import of_workflows
from continuum.models import WorkflowVersion

__all__ = ["HELP", "attribute_query", "found", "id_bounds"]

HELP = "The beginning of a run id, a part of a workflow's name, attributes such as plan:pro or customer.id:7"

_KEY = re.compile(r"[^\s:\"']+")


def found(runs: QuerySet, term: str) -> QuerySet:
    """Return the runs that every word of a search is true of.

    Args:
        runs: the runs to look among.
        term: what was typed. Words are apart by spaces, or in quotes.
    """
    for word in _words(term):
        if (bounds := id_bounds(word)) is not None:
            runs = runs.filter(id__range=bounds)
        elif (pair := _pair(word)) is not None:
            runs = runs.filter(_with_attribute(*pair))
        else:
            runs = of_workflows(runs, _workflows(runs, word))
    return runs


def id_bounds(term: str) -> tuple[UUID, UUID] | None:
    """Return the smallest and the largest id that begin like ``term``; None when it does not look like an id."""
    digits = term.strip().lower().replace("-", "")
    if not re.fullmatch(r"[0-9][0-9a-f]{3,31}", digits):
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def attribute_query(key: str, value: Any) -> str | None:
    """Return the query that lists the runs with this attribute; None where the search box cannot say it."""
    if not _KEY.fullmatch(key) or "." in key or isinstance(value, dict | list):
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _parsed(text) != text:
        text = json.dumps(value, ensure_ascii=False)  # "7", the text, and not the number
    return urlencode({"q": shlex.quote(f"{key}:{text}")})


def _words(term: str) -> list[str]:
    try:
        return shlex.split(term)
    except ValueError:
        return term.split()  # a quote that is not closed yet


def _pair(word: str) -> tuple[list[str], str] | None:
    key, colon, value = word.partition(":")
    return (key.split("."), value) if colon and _KEY.fullmatch(key) and all(key.split(".")) else None


def _with_attribute(path: list[str], text: str) -> Q:
    """A number may be meant as one, or as a text that looks like one: both are looked for."""
    values = [text]
    if (parsed := _parsed(text)) != text or isinstance(parsed, bool):
        values = [parsed] if isinstance(parsed, str) else [parsed, text]
    nested = (reduce(lambda inner, key: {key: inner}, reversed(path), value) for value in values)
    return reduce(Q.__or__, (Q(attributes__contains=each) for each in nested))


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text
    return text if isinstance(value, dict | list) else value


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _workflows(runs: QuerySet, word: str) -> list[str]:
    """Return the workflows whose names contain a word, out of those some worker has loaded: no run is read for it."""
    known = WorkflowVersion.objects.using(runs.db).filter(workflow__icontains=word)
    return [*known.order_by("workflow").values_list("workflow", flat=True).distinct(), word]
