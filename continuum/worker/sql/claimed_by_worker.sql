-- The runs this worker owns without knowing of it: those with a token it does not know. A claim whose answer was lost leaves
-- such runs, also long after the connection broke, when the server was still at it.
--
-- NOT IN, since the planner puts the tokens into a hash table for it whatever joins the session allows. No token is null.
SELECT r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed, r.depth,
    (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
    (extract(epoch FROM r.deadline_at) * 1000000)::bigint, r.continued_from_run_id IS NOT NULL, false, true, r.recoveries
FROM continuum_runs r
WHERE r.owner_id = %(worker)s AND r.lease_token NOT IN (SELECT unnest(%(tokens)s::bigint[]))
