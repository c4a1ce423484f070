-- Deletes one batch of nodes that died long ago. Runs that still point at one are freed all the same: an unknown owner is a dead one.
DELETE FROM continuum_workers
WHERE id IN (
    SELECT id
    FROM continuum_workers
    WHERE state = 'dead' AND coalesce(stopped_at, expires_at) < clock_timestamp() - make_interval(secs => %(age)s)
    ORDER BY id
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
)
