"""What an audit reads: never ended runs, never whole histories, however many there are."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from continuum.audit.snapshot import snapshot
from continuum.worker.partitions import ensure_partitions
from continuum.worker.sql import load

pytestmark = pytest.mark.django_db

PATCHED = {"patched": ["f"], "names": ["tax"]}


@pytest.fixture
def many():
    """Four hundred ended runs in three namespaces, with histories of eight events, and thirty that are active."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, namespace, state, claimed_at)"
            " SELECT gen_random_uuid(), 'f', gen_random_uuid(), 'n' || n % 3, 'completed', now()"
            " FROM generate_series(1, 400) n"
        )
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, namespace, state, claimed_at)"
            " SELECT gen_random_uuid(), 'f', gen_random_uuid(), 'n' || n % 3,"
            " CASE WHEN n % 10 = 0 THEN 'stuck_unknown_version' ELSE 'suspended' END, now()"
            " FROM generate_series(1, 30) n"
        )
        cursor.execute(
            "INSERT INTO continuum_events (run_id, seq, type, name, recorded_at)"
            " SELECT id, s, CASE WHEN s = 4 THEN 'patched' ELSE 'activity_completed' END, 'tax', now()"
            " FROM continuum_runs, generate_series(1, 8) s"
        )
        cursor.execute(
            "INSERT INTO continuum_activity_tasks (run_id, command_id, activity, queue, args, state, owner_id, attempt)"
            " SELECT gen_random_uuid(), '0:1', 'a', 'q', '[]', CASE WHEN n % 80 = 0 THEN 'running' ELSE 'ready' END,"
            " CASE WHEN n % 80 = 0 THEN 1 END, 1 FROM generate_series(1, 400) n"
        )
        cursor.execute("ANALYZE continuum_runs, continuum_events, continuum_activity_tasks")


def plan_of(statement, parameters):
    """Execute a statement as an audit does; returns its plan as text, and how many rows its scans went through."""
    with snapshot("default") as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {load(statement)}", parameters)
        found = cursor.fetchone()[0]
    plan = (found if isinstance(found, list) else json.loads(found))[0]["Plan"]
    return json.dumps(plan), sum(rows(plan))


def rows(node):
    if "Relation Name" in node:
        yield (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    for child in node.get("Plans", ()):
        yield from rows(child)


@pytest.mark.parametrize(
    ("statement", "parameters", "most"),
    [
        # Each run, its one event that tells of code, and a look at each namespace.
        ("audit_active", PATCHED, 30 + 30 + 10),
        ("audit_active", {"patched": [], "names": []}, 30 + 10),
        ("audit_histories", {}, 30 + 10),
        ("audit_stuck", {"limit": 100}, 3 + 3 + 10),
        ("audit_claims", {"limit": 100}, 10 + 10),
    ],
)
def test_what_is_read_follows_what_is_active(many, statement, parameters, most):
    plan, read = plan_of(statement, parameters)
    assert "Seq Scan" not in re.sub(r'"Seq Scan", [^{}]*"continuum_workers"', "", plan)
    assert 0 < read <= most


def test_of_a_history_the_events_that_tell_of_code_are_read_by_an_index_of_their_own(many):
    plan, _ = plan_of("audit_active", PATCHED)
    assert "continuum_events_default_run_id_idx" in plan
    assert "continuum_events_default_pkey" not in plan


def test_a_proof_finds_its_runs_and_the_ends_of_their_histories_by_their_keys(many):
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM continuum_runs WHERE state = 'suspended' LIMIT 20")
        run_ids = [run_id for (run_id,) in cursor.fetchall()]
    plan, read = plan_of("audit_runs", {"run_ids": run_ids})
    assert "Seq Scan" not in plan
    assert 0 < read <= 20 + 20


def test_partitions_to_come_have_that_index_as_well():
    with connection.cursor() as cursor:
        [name, *_] = ensure_partitions(cursor, datetime.now(UTC) + timedelta(days=365))
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [name])
        assert any("'version_adopted'" in definition for (definition,) in cursor.fetchall())


def test_decisions_on_patches_that_the_code_at_hand_does_not_ask_for_make_no_groups(many):
    with connection.cursor() as cursor:
        cursor.execute("UPDATE continuum_events SET name = run_id::text WHERE type = 'patched'")
    with snapshot("default") as cursor:
        cursor.execute(load("audit_active"), PATCHED)
        assert len(cursor.fetchall()) == 2  # suspended and stuck
