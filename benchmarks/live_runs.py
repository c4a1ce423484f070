"""Turns some of the runs that ``filling`` has made into live ones, as a cluster at work has them.

A tenth of a million, say: waiting for signals and timers, for activities of queues, for children; some parked, some at
work, some yet to begin; some the last of a chain of continued runs, of which the earlier ones have ended. They are
spread evenly over the newer half of the runs, so that old months hold none.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LONG_HISTORY", "STEPS", "WAITS", "make_live"]

#: How many different activities the runs' steps are.
STEPS = 7
#: The newest run, if it lives, has so many events.
LONG_HISTORY = 10_000
#: What live runs do, in percent: the numbers from 0 up to the one given.
WAITS = {"signal": 45, "timer": 70, "activity": 90, "child": 96, "start": 98, "work": 99, "code": 100}

_WORKERS = 10

WORKERS = """
INSERT INTO continuum_workers (name, host, pid, state, session_lock, expires_at, workflows)
SELECT 'shop-' || n, 'shop-' || n, 100 + n, 'alive', true, now() + interval '1 day',
       (SELECT json_object_agg(w.workflow, json_build_object(%(hash)s::text, 1))
          FROM (SELECT DISTINCT workflow FROM continuum_runs) AS w)
FROM generate_series(1, %(workers)s) AS n
"""

VERSIONS = """
INSERT INTO continuum_workflow_versions (workflow, version, version_hash)
SELECT DISTINCT workflow, 1, %(hash)s FROM continuum_runs
"""

# A run's lease token is the number it was made with. "place" counts the live ones from the newest one on.
LIVE = """
UPDATE continuum_runs AS run
SET state = live.state,
    input = json_build_array(json_build_object('id', 'o' || live.n, 'steps', live.steps, 'waits', live.waits)),
    result = NULL, error = NULL, completed_at = NULL, retention_until = NULL,
    version = 1, version_hash = CASE WHEN place %% 10 = 7 THEN md5('older code')::char(16) ELSE %(hash)s END,
    waiting_on = CASE live.waits
        WHEN 'signal' THEN json_build_array(json_build_object(
            'kind', 'signal', 'name', 'fraud_review', 'since', live.since, 'until', live.due))
        WHEN 'timer' THEN json_build_array(json_build_object('kind', 'timer', 'since', live.since, 'until', live.due))
        WHEN 'activity' THEN json_build_array(json_build_object(
            'kind', 'activity', 'name', 'shop.activities.deliver', 'queue', 'mail', 'since', live.since))
        WHEN 'child' THEN json_build_array(json_build_object(
            'kind', 'child', 'name', 'shop.workflows.mail_flow', 'since', live.since))
        ELSE '[]' END,
    owner_id = live.owner_id,
    claimed_at = CASE WHEN live.waits <> 'start' THEN run.started_at + interval '5 ms' END,
    next_wakeup_at = CASE WHEN live.waits IN ('signal', 'timer', 'start') THEN live.due END
FROM (
    SELECT
        numbered.*,
        CASE waits WHEN 'start' THEN 'pending' WHEN 'code' THEN 'stuck_unknown_version' WHEN 'work' THEN 'running'
            ELSE 'suspended' END AS state,
        CASE WHEN waits = 'start' THEN 0 WHEN n = %(runs)s THEN %(long)s ELSE %(events)s END AS steps,
        -- A tenth lies with nobody: parked, not begun, or handed over just now.
        CASE WHEN waits NOT IN ('start', 'code') AND place %% 10 <> 9
            THEN (SELECT min(id) FROM continuum_workers) + place %% %(workers)s END AS owner_id,
        %(until)s::timestamptz + interval '1 hour' * (1 + place %% 700) AS due
    FROM (
        SELECT id, lease_token AS n, (%(runs)s - lease_token) / %(every)s AS place, {waits} AS waits,
            started_at + interval '2 seconds' AS since
        FROM continuum_runs
        CROSS JOIN LATERAL (SELECT ((%(runs)s - lease_token) / %(every)s) %% 100 AS dice) AS thrown
        WHERE lease_token > %(runs)s - %(every)s * %(live)s AND (%(runs)s - lease_token) %% %(every)s = 0
    ) AS numbered
) AS live
WHERE run.id = live.id
"""

TASKS = """
INSERT INTO continuum_activity_tasks (run_id, command_id, activity, queue, args, state, attempt, due_at, owner_id)
SELECT id, '0:' || %(events)s + 1, 'shop.activities.deliver', 'mail', json_build_array('o' || lease_token),
    CASE WHEN lease_token %% 4 = 0 OR owner_id IS NULL THEN 'ready' ELSE 'running' END, 1,
    %(until)s::timestamptz + interval '1 minute' * (10 + lease_token %% 300), owner_id
FROM continuum_runs
WHERE state = 'suspended' AND waiting_on::text LIKE '%%"mail"%%'
"""

# Every tenth run that has ended is the child of the one before it, and the live runs that wait for a child have one.
CHILDREN = """
UPDATE continuum_runs AS child
SET parent_run_id = parent.id, parent_command_id = '0:1', depth = 1, correlation_id = parent.id
FROM continuum_runs AS parent
WHERE parent.lease_token = child.lease_token - 1
  AND child.lease_token %% 10 = 3
  AND child.completed_at IS NOT NULL AND parent.completed_at IS NOT NULL
"""
LIVE_CHILDREN = """
UPDATE continuum_runs AS child
SET parent_run_id = parent.id, parent_command_id = '0:' || %(events)s + 1, depth = 1, correlation_id = parent.id
FROM continuum_runs AS parent
WHERE parent.waiting_on::text LIKE '%%"child"%%'
  AND child.lease_token = parent.lease_token + 20 * %(every)s AND child.completed_at IS NULL
"""

# Each hundredth live run goes on where another ended, and that one where another did.
CHAINS = """
UPDATE continuum_runs AS run
SET continued_to_run_id = CASE WHEN run.completed_at IS NOT NULL THEN next.id END,
    continued_from_run_id = CASE WHEN run.lease_token > link.tip - 3 THEN previous.id END,
    state = CASE WHEN run.completed_at IS NOT NULL THEN 'completed' ELSE run.state END
FROM (
    SELECT tip.lease_token AS tip, tip.lease_token - back AS n
    FROM continuum_runs AS tip CROSS JOIN generate_series(0, 3) AS back
    WHERE tip.waiting_on::text LIKE '%%"signal"%%'
      AND ((%(runs)s - tip.lease_token) / %(every)s) %% 100 = 44
) AS link
JOIN continuum_runs AS previous ON previous.lease_token = link.n - 1
LEFT JOIN continuum_runs AS next ON next.lease_token = link.n + 1
WHERE run.lease_token = link.n
"""


def make_live(cursor: Any, live: int, *, runs: int, events: int, until: Any, version_hash: str) -> None:
    """Make live runs of some that have ended.

    Args:
        cursor: a DB-API cursor in autocommit, on tables that ``filling`` has just filled; those of runs, no more.
        live: how many; at most an eighth of the runs.
        runs: how many there are.
        events: how many events each is to have.
        until: when the last was started (aware).
        version_hash: what nine tenths of the live runs were started with; the others began with older code.
    """
    every = runs // (2 * live)
    if every < 4:
        raise ValueError(f"live: of {runs:,} runs no more than {runs // 8:,} can live, not {live:,}")
    cases = " ".join(f"WHEN dice < {top} THEN '{waits}'" for waits, top in WAITS.items())
    parameters = {
        "live": live,
        "every": every,
        "runs": runs,
        "events": events,
        "long": LONG_HISTORY if events else 0,
        "until": until,
        "hash": version_hash,
        "workers": _WORKERS,
    }
    for statement in (
        VERSIONS,
        WORKERS,
        LIVE.format(waits=f"CASE {cases} END"),
        TASKS,
        CHILDREN,
        LIVE_CHILDREN,
        CHAINS,
    ):
        cursor.execute(statement, parameters)
        cursor.execute("VACUUM (ANALYZE) continuum_runs")
