"""The plans of the statements on the hot path, with tables large enough for a bad plan to be tempting."""

from __future__ import annotations

import re

import pytest
from django.db import connection

from continuum.ids import uuid7
from continuum.worker.journal import JOURNAL_SESSION
from continuum.worker.sql import load

pytestmark = pytest.mark.django_db(transaction=True)

# Parameters that say what code a worker has.
CODE = {"hashes": "text[]", "pinned": "boolean", "patience": "float8", "grace": "float8"}


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
        cursor.execute(
            "INSERT INTO continuum_activity_tasks (run_id, command_id, activity, queue, args, state, owner_id, attempt)"
            " SELECT gen_random_uuid(), '0:1', 'a', 'q' || n % 3, '[]',"
            " CASE WHEN n % 5 = 0 THEN 'running' ELSE 'ready' END, CASE WHEN n % 5 = 0 THEN 1 END, 1"
            " FROM generate_series(1, 5000) n"
        )
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, version_hash, correlation_id, state, tried_versions)"
            " SELECT gen_random_uuid(), 'f' || n % 2, 'h', gen_random_uuid(), 'stuck_unknown_version', '1:' || n % 3"
            " FROM generate_series(1, 20000) n"
        )
        cursor.execute(
            "INSERT INTO continuum_workers (name, workflows, expires_at)"
            """ SELECT 'w', '{"f0": {"new": 1}}', now() + interval '1 hour' FROM generate_series(1, 3)"""
        )
        cursor.execute("ANALYZE continuum_runs, continuum_activity_tasks, continuum_workers")
        for name, value in JOURNAL_SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", [name, value])

        def plan_of(statement, given=None, **types):
            names: list[str] = []

            def numbered(match):
                name = match.group(1)
                if name not in names:
                    names.append(name)
                return f"${names.index(name) + 1}"

            text = re.sub(r"%\((\w+)\)s", numbered, load(statement))
            declared = ", ".join(types.get(name, "unknown") for name in names)
            cursor.execute("DEALLOCATE ALL")
            if not names:
                cursor.execute(f"EXPLAIN {text}")
                return "\n".join(row[0] for row in cursor.fetchall())
            cursor.execute(f"PREPARE planned ({declared}) AS {text}")
            values = [(given or {}).get(name, "NULL") for name in names]
            cursor.execute(f"EXPLAIN EXECUTE planned ({', '.join(values)})")
            return "\n".join(row[0] for row in cursor.fetchall())

        yield plan_of
        cursor.execute("RESET ALL")
        cursor.execute("DEALLOCATE ALL")


def test_the_journal_finds_each_run_by_its_id(plan_of):
    plan = plan_of("journal", worker="bigint")
    assert "continuum_runs_owner_idx" not in plan
    assert plan.count("continuum_runs_pkey") == 2
    assert "Seq Scan on continuum_runs" not in plan
    # Who is the first in line, asked for a run that is given back at work.
    assert "Scan using continuum_runs_ready_idx on continuum_runs first" in plan


def test_runs_claimed_unknowingly_are_sought_among_those_of_the_worker_only(plan_of):
    plan = plan_of("claimed_by_worker", worker="bigint", tokens="bigint[]")
    assert "continuum_runs_owner_idx" in plan
    assert "Index Cond: (owner_id = $1)" in plan
    assert "hashed SubPlan" in plan


def test_a_claim_reads_the_runs_that_are_due_and_no_others(plan_of):
    plan = plan_of("claim_due", worker="bigint", workflows="text[]", limit="bigint", **CODE)
    assert "continuum_runs_ready_idx" in plan
    assert re.search(r"Index Cond: .*priority.*next_wakeup_at", plan)
    assert "Seq Scan on continuum_runs" not in plan
    assert "hashed" in plan  # what other workers have loaded is read once, not once a run


@pytest.mark.parametrize("name", ["client_state", "client_send"])
def test_what_clients_ask_about_a_run_is_found_by_its_id(plan_of, name):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_inbox (run_id, kind, name, payload, delivery_id)"
            " SELECT gen_random_uuid(), 'signal', 'go', '1', CASE WHEN n % 2 = 0 THEN 'd' || n END"
            " FROM generate_series(1, 20000) n"
        )
        cursor.execute("ANALYZE continuum_inbox")
    plan = plan_of(name)
    assert "continuum_runs_pkey" in plan
    assert not re.search(r"(Seq|Bitmap Heap) Scan on continuum_(runs|inbox)|Hash", plan), plan


def test_suspects_are_found_without_looking_at_other_runs(plan_of):
    plan = plan_of(
        "claim_suspects",
        worker="bigint",
        workflows="text[]",
        limit="bigint",
        suspected="smallint",
        spared="smallint",
        **CODE,
    )
    assert plan.count("continuum_runs_suspects_idx") == 2
    assert "Seq Scan on continuum_runs" not in plan
    assert "continuum_runs_ready_idx" not in plan


def test_mail_is_found_from_the_inbox(plan_of):
    plan = plan_of("claim_mail", worker="bigint", workflows="text[]", limit="bigint", suspected="smallint", **CODE)
    assert "continuum_inbox_unread_idx" in plan
    assert "continuum_runs_pkey" in plan
    assert not re.search("(Seq|Bitmap Heap) Scan on continuum_runs|runs_stuck_idx|runs_ready_idx", plan)


def test_looking_for_parked_runs_skips_along_their_index(plan_of):
    plan = plan_of("claim_parked", worker="bigint", limit="bigint", **CODE)
    assert "continuum_runs_stuck_idx" in plan
    assert not re.search("(Seq|Bitmap Heap) Scan on continuum_runs|Sort|runs_owner_idx", plan)


def test_what_looking_for_parked_runs_costs_does_not_follow_their_number(plan_of):
    """Twenty thousand are parked, of six kinds, and nothing is to be done: each kind is read once."""
    values = {
        "worker": "1",
        "limit": "200",
        "pinned": "false",
        "loaded_names": "'{f0,f1}'",
        "loaded_versions": "'{1,1}'",
        "loaded_hashes": "'{0,0}'",
        "loaded_tokens": "'{1:0,1:0}'",
        "loaded_highest": "'{t,t}'",
    }
    tried = load("claim_parked").replace("k.tried_versions, ' ')", "k.tried_versions || ' 1:0', ' ')")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM continuum_runs")
        text = re.sub(r"%\((\w+)\)s", lambda match: values[match.group(1)], tried)
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
        assert cursor.fetchone()[0][0]["Plan"]["Shared Hit Blocks"] < 100


def test_looking_for_runs_that_nobody_has_the_code_for_reads_the_front_of_the_queue(plan_of):
    plan = plan_of("runs_park_unknown", batch="bigint", suspected="smallint", grace="float8", pinned="boolean")
    assert "continuum_runs_ready_idx" in plan
    assert "Seq Scan on continuum_runs" not in plan


def test_where_the_line_begins_is_read_from_its_front(plan_of):
    plan = plan_of("runs_release_dead", batch="bigint", suspected="smallint", spared="smallint")
    assert re.search(r"Index (Only )?Scan using continuum_runs_ready_idx on continuum_runs first", plan)
    assert not re.search("Seq Scan on continuum_runs|Sort", plan)


def test_the_versions_of_runs_are_noted_by_their_ids(plan_of):
    plan = plan_of("outbox_versions")
    assert "continuum_runs_pkey" in plan
    assert not re.search("Scan on continuum_runs|runs_owner_idx", plan)


def test_histories_are_read_from_the_primary_key(plan_of):
    plan = plan_of("history_load")
    assert "Seq Scan on continuum_events" not in plan
    assert "_pkey" in plan


def test_a_part_of_a_history_is_read_from_the_primary_key_of_its_partition_alone(plan_of):
    plan = plan_of("history_of_run", {"run_id": f"'{uuid7()}'", "after": "500", "upto": "1000"})
    assert "Subplans Removed" in plan
    assert re.search(r"Index Cond: .*run_id = .*seq > .*seq <= ", plan)
    assert len(re.findall("Scan", plan)) == 1


@pytest.mark.parametrize("statement", ["outbox_cascade", "outbox_adopt"])
def test_the_children_of_a_run_are_found_by_their_parent(plan_of, statement):
    plan = plan_of(statement)
    assert "continuum_runs_parent_idx" in plan
    assert "Seq Scan on continuum_runs" not in plan


@pytest.mark.parametrize(
    "statement",
    ["outbox_children", "outbox_continue", "outbox_cancels", "outbox_report", "mail_forward", "mail_forward_children"],
)
def test_what_a_commit_sends_to_a_runs_family_finds_each_run_by_its_id(plan_of, statement):
    plan = plan_of(statement)
    assert "continuum_runs_pkey" in plan
    assert not re.search(r"(Seq|Bitmap Heap) Scan on continuum_runs|runs_owner_idx|runs_ready_idx", plan)
    assert "Seq Scan on continuum_inbox" not in plan
    assert "Seq Scan on continuum_events" not in plan


def test_looking_for_stray_mail_walks_the_unread_messages_and_no_others(plan_of):
    plan = plan_of("mail_strays", limit="bigint")
    assert "continuum_inbox_unread_idx" in plan
    assert "continuum_runs_pkey" in plan
    assert "Seq Scan" not in plan


def test_a_claim_of_tasks_reads_what_is_due_of_one_priority_in_order(plan_of):
    plan = plan_of("tasks_claim", worker="bigint", limit="bigint")
    assert re.search(
        r"Index Scan using continuum_activity_tasks_ready_idx.*\n.*Index Cond: .*queue.*priority.*due_at", plan
    )
    assert "Seq Scan on continuum_activity_tasks" not in plan
    assert "Sort" not in plan
    assert "continuum_queues" not in plan


def test_looking_for_tasks_skips_along_the_index(plan_of):
    plan = plan_of("tasks_due")
    assert "continuum_activity_tasks_ready_idx" in plan
    assert not re.search("Seq Scan on continuum_activity_tasks|Bitmap|hashed|Sort", plan)
    with connection.cursor() as cursor:
        # Four thousand tasks are ready, in three queues: what is read follows the queues.
        cursor.execute("VACUUM continuum_activity_tasks")
        text = load("tasks_due").replace("%(queues)s", "NULL")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
        assert cursor.fetchone()[0][0]["Plan"]["Shared Hit Blocks"] < 100


@pytest.mark.parametrize("statement", ["tasks_of_worker", "tasks_give_back", "queue_running", "tasks_owners_gone"])
def test_tasks_under_way_are_found_by_their_workers(plan_of, statement):
    plan = plan_of(statement, worker="bigint")
    assert "continuum_activity_tasks_owner_idx" in plan
    assert "Seq Scan on continuum_activity_tasks" not in plan


def test_outcomes_and_the_outbox_find_tasks_by_their_keys(plan_of):
    for statement, types in (("task_outcomes", {"worker": "bigint"}), ("outbox_drop_tasks", {})):
        plan = plan_of(statement, **types)
        assert "continuum_activity_tasks_pkey" in plan
        assert "Seq Scan on continuum_activity_tasks" not in plan


def test_a_task_is_handed_over_once_without_a_look_at_each_message_for_each_task(plan_of):
    plan = plan_of("outbox_tasks")
    assert "hashed" in plan


def test_the_look_before_a_poll_reads_the_front_of_each_index(plan_of):
    plan = plan_of("intake_look", worker="bigint")
    for index in ("runs_ready_idx", "inbox_unread_idx", "runs_suspects_idx", "runs_stuck_idx"):
        assert f"continuum_{index}" in plan
    assert not re.search(r"Seq Scan|Bitmap|Sort", plan)
    with connection.cursor() as cursor:
        # Five thousand runs sleep, twenty thousand are parked: what is read follows neither.
        cursor.execute("VACUUM continuum_runs")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {load('intake_look').replace('%(worker)s', '1')}")
        assert cursor.fetchone()[0][0]["Plan"]["Shared Hit Blocks"] < 50


def test_the_word_of_a_child_finds_it_by_its_id_also_when_planned_for_empty_tables():
    """A plan is kept: one made on the first day must not read all that have ended, or have parents, ever after."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE continuum_runs")
        for name, value in JOURNAL_SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", [name, value])
        try:
            text = load("outbox_report").replace("%(run_ids)s", "$1")
            cursor.execute(f"PREPARE planned (unknown) AS {text}")
            cursor.execute("EXPLAIN EXECUTE planned (NULL)")
            plan = "\n".join(row[0] for row in cursor.fetchall())
        finally:
            cursor.execute("RESET ALL")
            cursor.execute("DEALLOCATE ALL")
    assert plan.count("Index Scan using continuum_runs_pkey") == 2
    assert not re.search(r"continuum_runs_(?!pkey)\w+idx|Seq Scan on continuum_runs", plan)


@pytest.mark.parametrize("hint", ["hint_of_run", "hint_of_mail", "hint_of_end"])
def test_a_hint_looks_at_nothing_but_the_run_it_tells_of(plan_of, hint):
    plan = plan_of(hint, run_id="uuid")
    assert "continuum_runs_pkey" in plan
    assert "Seq Scan" not in plan
