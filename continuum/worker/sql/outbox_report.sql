-- Tells parents how children have ended. What the journal's statement has just written to the child's row is what they are told.
--
-- No delivery id: once this is committed the child has no owner, and a second attempt at the same commit is refused.
-- The parent's row is read without a lock. If its own commit continues it at this moment, the message stays behind in the
-- inbox of a run that has ended, as it should: the successor has not asked for this child. The other order finds the child's
-- command gone. A parent that failed may be retried and want to know; one that completed or was cancelled never will.
--
-- OFFSET 0: each child is looked up by its id and by nothing else. Planned while few runs have ended, the indexes of those that
-- have, and of those that have parents, would look like the way to find the children, for ever after.
WITH told AS MATERIALIZED (
    SELECT p.id, p.owner_id, c.parent_command_id,
        json_build_object('child', c.id, 'state', c.state, 'result', c.result, 'error', c.error) AS payload
    FROM unnest(%(run_ids)s::uuid[]) AS e (id)
    CROSS JOIN LATERAL (
        SELECT r.id, r.parent_run_id, r.parent_command_id, r.continued_to_run_id, r.state, r.result, r.error
        FROM continuum_runs r WHERE r.id = e.id
        OFFSET 0
    ) c
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
