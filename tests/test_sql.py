"""Statements, whole and in part."""

from itertools import combinations

import pytest
from django.db import connection

from continuum.worker.sql import load

OPTIONAL = ("written", "consumed", "kept", "updated")
SUBSETS = [frozenset(some) for size in range(len(OPTIONAL) + 1) for some in combinations(OPTIONAL, size)]


@pytest.mark.parametrize("without", SUBSETS, ids=lambda some: "-".join(sorted(some)) or "whole")
@pytest.mark.django_db
def test_the_journals_statement_is_one_whatever_is_left_out(without):
    text = load("journal", without)
    for part in OPTIONAL:
        assert (f"), {part} AS (" in text) == (part not in without)
    assert text.startswith(load("journal")[:200])
    assert text.endswith("\n)\nSELECT run_id FROM lost")
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {text}", dict.fromkeys(_names(text)))
        assert cursor.fetchall()


def test_nothing_else_in_it_depends_on_what_is_left_out():
    shared = load("journal", frozenset(OPTIONAL))
    assert shared.count(" AS ") < load("journal").count(" AS ")
    for part in OPTIONAL:
        mentions = [line for line in load("journal").splitlines() if f"FROM {part}" in line or f"JOIN {part}" in line]
        assert mentions == []


def test_what_is_not_there_cannot_be_left_out():
    with pytest.raises(ValueError, match=r"journal\.sql has no lost_and_found"):
        load("journal", frozenset({"written", "lost_and_found"}))
    with pytest.raises(FileNotFoundError):
        load("no_such_statement")


def _names(text):
    return {part.partition(")")[0] for part in text.split("%(")[1:]}
