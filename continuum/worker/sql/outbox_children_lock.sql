-- Locks failed children that are to be retried along with their parent.
SELECT id FROM continuum_runs WHERE id = ANY(%(run_ids)s::uuid[]) AND state = 'failed' ORDER BY id FOR UPDATE SKIP LOCKED
