-- Deletes rows of heartbeats that were written while their commands came to an end: the commit that would have deleted them
-- did not see them yet.
DELETE FROM continuum_activity_tasks t
USING unnest(%(run_ids)s::uuid[], %(command_ids)s::text[], %(tokens)s::bigint[]) AS b (run_id, command_id, token)
WHERE t.run_id = b.run_id AND t.command_id = b.command_id AND t.state = 'local' AND t.lease_token = b.token
