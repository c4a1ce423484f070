-- Claims tasks that are due, from these queues and priorities in the order given, in each the longest due first.
--
-- SKIP LOCKED lets any number of workers claim at once; nothing else is locked but the worker's own row: one that was declared
-- dead claims nothing. Only activities that the worker has loaded: others stay for workers that have them.
WITH lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state = 'alive' FOR KEY SHARE
), due AS MATERIALIZED (
    SELECT d.run_id, d.command_id
    FROM unnest(%(queues)s::text[], %(priorities)s::smallint[]) AS p (queue, priority)
    CROSS JOIN LATERAL (
        SELECT t.run_id, t.command_id FROM continuum_activity_tasks t
        WHERE t.state = 'ready' AND t.queue = p.queue AND t.priority = p.priority AND t.due_at <= statement_timestamp()
          AND t.activity = ANY(%(activities)s::text[])
        ORDER BY t.due_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) d
    LIMIT %(limit)s
)
UPDATE continuum_activity_tasks t
SET state = 'running', owner_id = lease.id, lease_token = nextval('continuum_lease_token_seq'),
    claimed_at = statement_timestamp(), heartbeat_at = statement_timestamp()
FROM due, lease
WHERE t.run_id = due.run_id AND t.command_id = due.command_id
RETURNING t.run_id, t.command_id, t.activity, t.queue, t.args::text, t.options::text, t.attempt, t.recoveries, t.lease_token,
    t.heartbeat_details::text
