-- Tells parents how children have ended. What the journal's statement has just written to the child's row is what they are told.
--
-- No delivery id: once this is committed the child has no owner, and a second attempt at the same commit is refused.
-- The parent's row is read without a lock. If its own commit continues it at this moment, the message stays behind in the
-- inbox of a run that has ended, as it should: the successor has not asked for this child. The other order finds the child's
-- command gone. A parent that failed may be retried and want to know; one that completed or was cancelled never will.
WITH told AS MATERIALIZED (
    SELECT p.id, p.owner_id, c.parent_command_id,
        json_build_object('child', c.id, 'state', c.state, 'result', c.result, 'error', c.error) AS payload
    FROM unnest(%(run_ids)s::uuid[]) AS e (id)
    JOIN continuum_runs c ON c.id = e.id
    JOIN continuum_runs p ON p.id = c.parent_run_id
    WHERE c.parent_command_id IS NOT NULL
      AND c.continued_to_run_id IS NULL
      AND c.state IN ('completed', 'failed', 'cancelled')
      AND p.state NOT IN ('completed', 'cancelled')
), sent AS (
    INSERT INTO continuum_inbox (run_id, kind, command_id, payload)
    SELECT t.id, 'child', t.parent_command_id, t.payload FROM told t
)
SELECT t.id, t.owner_id FROM told t
