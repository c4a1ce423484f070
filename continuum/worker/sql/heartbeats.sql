-- The newest details of attempts under way. Of tasks under their token; and of attempts that the owners of runs make
-- themselves, which get a row for this: "local". No such row comes to a run that is in other hands by now.
WITH lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state <> 'dead' FOR KEY SHARE
), beats AS MATERIALIZED (
    SELECT b.run_id, b.command_id, b.activity, b.attempt, b.token, b.is_task, b.details
    FROM unnest(
        %(run_ids)s::uuid[], %(command_ids)s::text[], %(activities)s::text[], %(attempts)s::smallint[],
        %(tokens)s::bigint[], %(is_task)s::boolean[], %(details)s::json[]
    ) AS b (run_id, command_id, activity, attempt, token, is_task, details)
), tasks AS (
    UPDATE continuum_activity_tasks t
    SET heartbeat_at = clock_timestamp(), heartbeat_details = b.details
    FROM beats b
    WHERE b.is_task AND t.run_id = b.run_id AND t.command_id = b.command_id
      AND t.state = 'running' AND t.lease_token = b.token AND t.owner_id = %(worker)s
)
INSERT INTO continuum_activity_tasks AS t (
    run_id, command_id, activity, args, state, attempt, lease_token, heartbeat_at, heartbeat_details
)
SELECT b.run_id, b.command_id, b.activity, '[]', 'local', b.attempt, b.token, clock_timestamp(), b.details
FROM beats b
JOIN continuum_runs r ON r.id = b.run_id AND r.lease_token + 0 = b.token
JOIN lease ON lease.id = coalesce(r.owner_id, 0)
WHERE NOT b.is_task
ORDER BY b.run_id, b.command_id
ON CONFLICT (run_id, command_id) DO UPDATE
SET attempt = EXCLUDED.attempt, lease_token = EXCLUDED.lease_token, heartbeat_at = EXCLUDED.heartbeat_at,
    heartbeat_details = EXCLUDED.heartbeat_details
WHERE t.state = 'local'
