-- Of children that were started before: those that have ended without a word in their parent's inbox, each by the tip of its
-- chain, and whether it is to be retried. It is, if it failed before its parent was retried: then that failure has had its
-- effect. One that failed later has its word to say.
WITH RECURSIVE chain AS (
    SELECT a.parent, a.command_id, a.retried_us, r.id, r.state, r.completed_at, r.continued_to_run_id
    FROM unnest(%(parents)s::uuid[], %(ids)s::uuid[], %(commands)s::text[], %(retried)s::bigint[])
        AS a (parent, id, command_id, retried_us)
    JOIN continuum_runs r ON r.id = a.id
    UNION ALL
    SELECT c.parent, c.command_id, c.retried_us, r.id, r.state, r.completed_at, r.continued_to_run_id
    FROM chain c JOIN continuum_runs r ON r.id = c.continued_to_run_id
)
SELECT
    c.id,
    c.state = 'failed' AND coalesce(c.completed_at < timestamptz 'epoch' + c.retried_us * interval '1 microsecond', false)
FROM chain c
WHERE c.continued_to_run_id IS NULL
  AND c.state IN ('completed', 'failed', 'cancelled')
  AND NOT EXISTS (
      SELECT 1 FROM continuum_inbox i
      WHERE i.run_id = c.parent AND i.consumed_at IS NULL AND i.kind = 'child' AND i.command_id = c.command_id
  )
