"""What no row of an answer may exist for, once all is over: asked of the database by SQL."""

from __future__ import annotations

__all__ = ["ENDED", "QUESTIONS"]

ENDED = "('completed', 'failed', 'cancelled')"
ENDS = "('run_completed', 'run_failed', 'run_cancelled', 'run_continued')"

# Each names what no row of its answer may exist for.
QUESTIONS = {
    "runs that have not ended": f"SELECT id, state FROM continuum_runs WHERE state NOT IN {ENDED}",
    "gaps in histories": (
        "SELECT run_id, min(seq), max(seq), count(*) FROM continuum_events GROUP BY run_id "
        "HAVING max(seq) <> count(*) OR min(seq) <> 1"
    ),
    "ended runs without an end": (
        f"SELECT r.id, r.state FROM continuum_runs r WHERE r.state IN {ENDED} AND NOT EXISTS ("
        "SELECT FROM continuum_events e WHERE e.run_id = r.id AND e.type = CASE "
        "WHEN r.continued_to_run_id IS NOT NULL THEN 'run_continued' ELSE 'run_' || r.state END AND e.seq = "
        "(SELECT max(seq) FROM continuum_events l WHERE l.run_id = r.id))"
    ),
    "ends that something follows": (
        f"SELECT e.run_id, e.seq, e.type, n.type FROM continuum_events e JOIN continuum_events n "
        f"ON n.run_id = e.run_id AND n.seq = e.seq + 1 WHERE e.type IN {ENDS} "
        "AND NOT (e.type = 'run_failed' AND n.type = 'run_retried')"
    ),
    "commands answered twice": (
        "SELECT run_id, command_id, array_agg(type ORDER BY seq) FROM continuum_events e WHERE command_id IS NOT NULL "
        "AND type IN ('activity_completed', 'activity_failed', 'timer_fired', 'side_effect', 'child_completed', "
        "'child_failed') AND NOT (type LIKE '%_failed' AND EXISTS (SELECT FROM continuum_events r "
        "WHERE r.run_id = e.run_id AND r.type = 'run_retried' AND r.seq > e.seq)) GROUP BY 1, 2 HAVING count(*) > 1"
    ),
    # A run that is retried has all its attempts again.
    "attempts recorded twice": (
        "SELECT run_id, command_id, attempt, retries FROM (SELECT run_id, command_id, data->>'attempt' AS attempt, "
        "(SELECT count(*) FROM continuum_events r WHERE r.run_id = e.run_id AND r.type = 'run_retried' "
        "AND r.seq < e.seq) AS retries FROM continuum_events e WHERE type = 'activity_retried') AS tried "
        "GROUP BY 1, 2, 3, 4 HAVING count(*) > 1"
    ),
    "effects recorded twice": (
        "SELECT data->>'result', count(*) FROM continuum_events WHERE type = 'activity_completed' "
        "AND name ~ '\\.(does|flaky|once|once_in_time|beats|passes|takes_place)$' GROUP BY 1 HAVING count(*) > 1"
    ),
    "effects recorded that are not there": (
        "SELECT e.run_id, e.data->>'result' FROM continuum_events e WHERE e.type = 'activity_completed' "
        "AND e.name ~ '\\.(does|flaky|once|once_in_time|beats|passes|takes_place|draws_once)$' "
        "AND NOT EXISTS (SELECT FROM testapp_effect f WHERE f.key = e.data->>'result')"
    ),
    "transactional effects that took place twice": (
        "SELECT key, count(*) FROM testapp_effect WHERE key LIKE 'once:%' AND key NOT LIKE 'once:shared%' GROUP BY 1 "
        "HAVING count(*) > 1"
    ),
    # Only a run that was cancelled, or failed, may have ended before it learned of what it had begun.
    "transactional effects that no history knows": (
        "SELECT f.key FROM testapp_effect f WHERE f.key LIKE 'once:%' AND NOT EXISTS (SELECT FROM continuum_events e "
        "WHERE e.type = 'activity_completed' AND e.data->>'result' = f.key) AND f.key NOT LIKE 'once:do:%'"
    ),
    "shared keys with several effects": (
        "SELECT split_part(key, ':', 2), split_part(key, ':', 3), count(*) FROM testapp_effect "
        "WHERE key LIKE 'once:shared%' GROUP BY 1, 2 HAVING count(*) > 1"
    ),
    "shared keys with several results": (
        "SELECT key, array_agg(DISTINCT result) FROM (SELECT data->>'result' AS result, "
        "regexp_replace(data->>'result', '^(once:)?(.*):[0-9a-f]+$', '\\2') AS key FROM continuum_events "
        "WHERE type = 'activity_completed' AND name ~ '\\.draws(_once)?$') AS drawn "
        "GROUP BY 1 HAVING count(DISTINCT result) > 1"
    ),
    "sagas that were undone in part": (
        "SELECT run_id, count(*) FILTER (WHERE data->>'result' LIKE 'once:do:%') AS done, "
        "count(*) FILTER (WHERE data->>'result' LIKE 'once:undo:%') AS undone FROM continuum_events e "
        "JOIN continuum_runs r ON r.id = e.run_id WHERE type = 'activity_completed' "
        "AND r.state IN ('failed', 'cancelled') "
        "GROUP BY 1 HAVING count(*) FILTER (WHERE data->>'result' LIKE 'once:do:%') <> "
        "count(*) FILTER (WHERE data->>'result' LIKE 'once:undo:%')"
    ),
    "sagas that succeeded and were undone": (
        "SELECT e.run_id, e.data->>'result' FROM continuum_events e JOIN continuum_runs r ON r.id = e.run_id "
        "WHERE e.type = 'activity_completed' AND r.state = 'completed' AND e.data->>'result' LIKE 'once:undo:%'"
    ),
    "children whose parents recorded something else": (
        "SELECT c.id, c.state, e.type, e.data FROM continuum_events e JOIN continuum_runs c "
        "ON c.parent_run_id = e.run_id "
        "AND c.parent_command_id = e.command_id AND c.continued_to_run_id IS NULL "
        "WHERE e.type IN ('child_completed', 'child_failed') "
        "AND ((e.type = 'child_completed') <> (c.state = 'completed') "
        "OR (e.type = 'child_completed' AND (e.data->'result')::jsonb IS DISTINCT FROM c.result::jsonb))"
    ),
    "children that go on although they were cancelled with their parent": (
        "SELECT c.id, c.state FROM continuum_runs c JOIN continuum_runs p ON p.id = c.parent_run_id "
        "WHERE p.state = 'cancelled' AND c.state <> 'cancelled'"
    ),
    "ended runs with an owner": (
        f"SELECT id, state, owner_id FROM continuum_runs WHERE owner_id IS NOT NULL AND state IN {ENDED}"
    ),
    "runs that nobody owns and that are due": (
        f"SELECT id, state FROM continuum_runs WHERE owner_id IS NULL AND next_wakeup_at IS NOT NULL "
        f"AND state IN {ENDED}"
    ),
    "tasks that are left": "SELECT run_id, command_id, activity, state, owner_id FROM continuum_activity_tasks",
    # An answer may come twice: who asks again, not knowing whether it was heard, may be told again. The first counts.
    "unread mail of completed runs": (
        "SELECT i.run_id, r.workflow, i.id, i.kind, i.name, i.command_id, i.payload FROM continuum_inbox i "
        "JOIN continuum_runs r ON r.id = i.run_id WHERE i.consumed_at IS NULL AND r.state = 'completed' "
        "AND NOT EXISTS (SELECT FROM continuum_events e WHERE e.run_id = i.run_id AND e.command_id = i.command_id "
        "AND e.type ~ '_(completed|failed)$')"
    ),
    "keys that are held by nobody": (
        "SELECT idempotency_key FROM continuum_activity_results WHERE kind = 'activity_key' AND result IS NULL"
    ),
}
