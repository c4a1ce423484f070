-- Runs whose histories are to be proved, unless they have ended meanwhile, and how long these are: one look at the end of each
-- in the primary key.
SELECT r.id, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed, r.depth,
    (extract(epoch FROM r.started_at) * 1000000)::bigint,
    (extract(epoch FROM coalesce(r.claimed_at, statement_timestamp())) * 1000000)::bigint,
    coalesce((SELECT e.seq FROM continuum_events e WHERE e.run_id = r.id ORDER BY e.seq DESC LIMIT 1), 0)
FROM continuum_runs r
WHERE r.id = ANY(%(run_ids)s::uuid[])
  AND r.state IN ('pending', 'running', 'suspended', 'stuck_unknown_version')
ORDER BY r.id
