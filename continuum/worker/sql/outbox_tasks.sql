-- Hands activities to whichever worker serves their queue. A row that is there already (the run's code asked before, and its
-- worker died) is left as it is, unless it only kept the heartbeats of attempts the run's own worker made.
--
-- "answered": a commit whose acknowledgement was lost is repeated, and by then the activity may have ended and its row be gone.
-- Without hash joins (see JOURNAL_SESSION), NOT IN is what is looked up in a hash table.
WITH task AS (
    SELECT t.run_id, t.command_id, t.activity, t.queue, t.priority, t.args, t.options, t.attempt, t.due_us
    FROM unnest(
        %(run_ids)s::uuid[], %(commands)s::text[], %(activities)s::text[], %(queues)s::text[], %(priorities)s::smallint[],
        %(args)s::json[], %(options)s::json[], %(attempts)s::integer[], %(due)s::bigint[]
    ) AS t (run_id, command_id, activity, queue, priority, args, options, attempt, due_us)
), answered AS MATERIALIZED (
    SELECT i.run_id, i.command_id FROM continuum_inbox i
    WHERE i.run_id = ANY(%(run_ids)s::uuid[]) AND i.consumed_at IS NULL AND i.kind = 'activity' AND i.command_id IS NOT NULL
)
INSERT INTO continuum_activity_tasks AS known (
    run_id, command_id, activity, queue, priority, args, options, attempt, due_at
)
SELECT
    t.run_id, t.command_id, t.activity, t.queue, t.priority, t.args, t.options, least(t.attempt, 32767),
    greatest(timestamptz 'epoch' + t.due_us * interval '1 microsecond', statement_timestamp())
FROM task t
WHERE (t.run_id, t.command_id) NOT IN (SELECT a.run_id, a.command_id FROM answered a)
ON CONFLICT (run_id, command_id) DO UPDATE
SET queue = excluded.queue, priority = excluded.priority, args = excluded.args, options = excluded.options,
    state = 'ready', attempt = excluded.attempt, due_at = excluded.due_at, owner_id = NULL
WHERE known.state = 'local'
