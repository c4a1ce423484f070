-- After a commit whose acknowledgement was lost: which of its records are there? A batch is one transaction, so the last
-- record of each run tells.
SELECT run_id, max(seq) FROM continuum_events WHERE run_id = ANY(%(run_ids)s::uuid[]) GROUP BY run_id
