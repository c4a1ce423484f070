"""The plans of the statements on the hot path, with tables large enough for a bad plan to be tempting."""

from __future__ import annotations

import re

import pytest
from django.db import connection

from continuum.worker.journal import JOURNAL_SESSION
from continuum.worker.sql import load

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def plan_of():
    """Return the text of the generic plan of a statement, as a worker's session plans it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, state, owner_id, lease_token)"
            " SELECT gen_random_uuid(), 'f', gen_random_uuid(), 'running', 1, n FROM generate_series(1, 5000) n"
        )
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, state, next_wakeup_at)"
            " SELECT gen_random_uuid(), 'f', gen_random_uuid(), 'suspended', now() + n * interval '1 hour'"
            " FROM generate_series(1, 5000) n"
        )
        cursor.execute("ANALYZE continuum_runs")
        for name, value in JOURNAL_SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", [name, value])

        def plan_of(statement, **types):
            names: list[str] = []

            def numbered(match):
                name = match.group(1)
                if name not in names:
                    names.append(name)
                return f"${names.index(name) + 1}"

            text = re.sub(r"%\((\w+)\)s", numbered, load(statement))
            declared = ", ".join(types.get(name, "unknown") for name in names)
            cursor.execute("DEALLOCATE ALL")
            cursor.execute(f"PREPARE planned ({declared}) AS {text}")
            cursor.execute(f"EXPLAIN EXECUTE planned ({', '.join(['NULL'] * len(names))})")
            return "\n".join(row[0] for row in cursor.fetchall())

        yield plan_of
        cursor.execute("RESET ALL")
        cursor.execute("DEALLOCATE ALL")


def test_the_journal_finds_each_run_by_its_id(plan_of):
    plan = plan_of("journal", worker="bigint")
    assert "continuum_runs_owner_idx" not in plan
    assert plan.count("continuum_runs_pkey") == 2
    assert "Seq Scan on continuum_runs" not in plan


def test_a_claim_reads_the_runs_that_are_due_and_no_others(plan_of):
    plan = plan_of("claim_due", worker="bigint", workflows="text[]", limit="bigint")
    assert "continuum_runs_ready_idx" in plan
    assert re.search(r"Index Cond: .*priority.*next_wakeup_at", plan)
    assert "Seq Scan on continuum_runs" not in plan


def test_suspects_are_found_without_looking_at_other_runs(plan_of):
    plan = plan_of("claim_suspect", worker="bigint", workflows="text[]", suspected="smallint")
    assert "continuum_runs_suspects_idx" in plan
    assert "Seq Scan on continuum_runs" not in plan
    assert "continuum_runs_ready_idx" not in plan


def test_a_history_is_read_from_the_primary_key(plan_of):
    plan = plan_of("history_load")
    assert "Seq Scan on continuum_events" not in plan
    assert "_pkey" in plan
