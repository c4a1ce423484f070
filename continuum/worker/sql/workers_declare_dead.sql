-- Declares nodes dead that were seen without their lock, and all whose lease ran out.
--
-- FOR UPDATE waits for no one and yields to a journal commit of that node (FOR KEY SHARE): such a row is skipped and looked at
-- again in the next sweep; a commit that comes later finds the state changed and does nothing. SKIP LOCKED also keeps
-- two survivors from queueing up for the same row. The conditions are checked again on the locked row: a renewal wins.
WITH gone AS (
    SELECT worker.id
    FROM continuum_workers AS worker
    WHERE worker.state <> 'dead'
      AND worker.id <> %(me)s
      AND (worker.expires_at < clock_timestamp() OR (worker.session_lock AND worker.id = ANY(%(lockless)s::bigint[])))
    ORDER BY worker.id
    FOR UPDATE SKIP LOCKED
)
UPDATE continuum_workers AS worker
SET state = 'dead', stopped_at = clock_timestamp(), session_lock = false
FROM gone
WHERE worker.id = gone.id
RETURNING worker.id
