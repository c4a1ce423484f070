-- Parks runs that have waited for a while and that no live worker has the code for, nor had any within that while.
--
-- One batch. Runs that nobody claims become the longest waiting ones of their priority, so only the front of the queue is
-- looked at, and what it costs does not follow the backlog. Of those that wait for no time, but have mail, the mail is looked at.
-- A worker that does not say what it has loaded may have anything. Suspects stay with their own statement.
-- A parked run with a time limit is due when that is over.
WITH RECURSIVE priorities (priority) AS (
    (SELECT r.priority FROM continuum_runs r WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL
     ORDER BY r.priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT r.priority FROM continuum_runs r
            WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL AND r.priority < p.priority
            ORDER BY r.priority DESC LIMIT 1)
    FROM priorities p WHERE p.priority IS NOT NULL
), recent AS MATERIALIZED (
    SELECT w.workflows FROM continuum_workers w
    WHERE w.state <> 'dead'
       OR coalesce(w.stopped_at, w.expires_at) > statement_timestamp() - make_interval(secs => %(grace)s)
), loaded AS MATERIALIZED (
    SELECT DISTINCT l.workflow, h.version_hash
    FROM recent
    CROSS JOIN LATERAL jsonb_each(recent.workflows) AS l (workflow, versions)
    CROSS JOIN LATERAL jsonb_object_keys(l.versions) AS h (version_hash)
), due AS MATERIALIZED (
    SELECT d.id, d.workflow, d.version_hash
    FROM priorities p
    CROSS JOIN LATERAL (
        SELECT r.id, r.workflow, r.version_hash FROM continuum_runs r
        WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL AND r.priority = p.priority
          AND r.next_wakeup_at <= statement_timestamp() - make_interval(secs => %(grace)s)
        ORDER BY r.next_wakeup_at
        LIMIT %(batch)s
    ) d
    WHERE p.priority IS NOT NULL
), written_to AS MATERIALIZED (
    SELECT DISTINCT r.id, r.workflow, r.version_hash
    FROM continuum_inbox i
    JOIN continuum_runs r ON r.id = i.run_id
    WHERE i.consumed_at IS NULL AND i.created_at <= statement_timestamp() - make_interval(secs => %(grace)s)
      AND r.owner_id IS NULL AND (r.state = 'suspended' OR r.state = 'pending' AND i.kind = 'cancel')
      AND NOT EXISTS (
          SELECT 1 FROM loaded l
          WHERE l.workflow = r.workflow AND (NOT %(pinned)s OR l.version_hash = r.version_hash)
      )
    LIMIT %(batch)s
), stranded AS MATERIALIZED (
    SELECT c.id, EXISTS (SELECT 1 FROM loaded l WHERE l.workflow = c.workflow) AS other_code
    FROM (SELECT * FROM due UNION SELECT * FROM written_to) c
    WHERE NOT EXISTS (SELECT 1 FROM recent WHERE recent.workflows IS NULL) AND NOT EXISTS (
        SELECT 1 FROM loaded l
        WHERE l.workflow = c.workflow AND (NOT %(pinned)s OR l.version_hash = c.version_hash)
    )
), held AS MATERIALIZED (
    SELECT r.id, r.workflow, r.version_hash, s.other_code
    FROM stranded s JOIN continuum_runs r ON r.id = s.id
    WHERE r.owner_id IS NULL AND r.state IN ('pending', 'suspended') AND r.recoveries < %(suspected)s
    FOR NO KEY UPDATE OF r SKIP LOCKED
), seen AS MATERIALIZED ( -- once for each version, not for each run
    SELECT k.workflow, k.version_hash, k.other_code, greatest(
        (SELECT max(coalesce(w.stopped_at, w.heartbeat_at)) FROM continuum_workers w
         WHERE CASE WHEN k.other_code THEN w.workflows -> k.workflow ? k.version_hash ELSE w.workflows ? k.workflow END),
        (SELECT max(v.last_seen_at) FROM continuum_workflow_versions v
         WHERE v.workflow = k.workflow AND (NOT k.other_code OR v.version_hash = k.version_hash))
    ) AS at
    FROM (SELECT DISTINCT held.workflow, held.version_hash, held.other_code FROM held) k
)
UPDATE continuum_runs r
SET state = 'stuck_unknown_version',
    next_wakeup_at = r.deadline_at,
    waiting_on = '[]',
    error = json_build_object(
        'type', 'UnknownWorkflowError',
        'message', CASE
            WHEN held.other_code THEN format(
                'no live worker has loaded the code of this run, version %%s (%%s) of workflow %%s, and VERSION_POLICY is "pin"',
                r.version, r.version_hash, r.workflow
            )
            ELSE format('no live worker has loaded workflow %%s', r.workflow)
        END || '; last seen ' || coalesce(to_char(seen.at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never')
            || '. The run goes on by itself when a worker comes that has it',
        'traceback', '',
        'details', json_build_object(
            'workflow', r.workflow, 'version', r.version, 'version_hash', r.version_hash, 'last_seen', seen.at
        )
    )
FROM held
JOIN seen ON seen.workflow = held.workflow AND seen.version_hash = held.version_hash AND seen.other_code = held.other_code
WHERE r.id = held.id
RETURNING r.workflow
