-- Gives back tasks a worker will not carry out: all of its own, or those with certain tokens. No attempt is lost by it, and
-- nobody died: the next claim makes the same attempt.
UPDATE continuum_activity_tasks t
SET state = 'ready', owner_id = NULL, lease_token = nextval('continuum_lease_token_seq'), claimed_at = NULL, heartbeat_at = NULL
WHERE t.owner_id = %(worker)s AND t.state = 'running'
  AND (%(tokens)s::bigint[] IS NULL OR t.lease_token = ANY(%(tokens)s::bigint[]))
