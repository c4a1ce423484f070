-- Every run this worker owns. Asked after a claim whose answer was lost: it may have claimed runs it does not know of.
SELECT r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed,
    (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
    (extract(epoch FROM r.deadline_at) * 1000000)::bigint, false, true, r.recoveries
FROM continuum_runs r
WHERE r.owner_id = %(worker)s
