-- Tasks that are with a worker that is gone, or whose lease is over, longest first; and how many there are in all.
-- Walks the distinct owners along continuum_activity_tasks_owner_idx, as in tasks_owners_gone.
WITH RECURSIVE owners (id) AS (
    (SELECT t.owner_id FROM continuum_activity_tasks t WHERE t.owner_id IS NOT NULL ORDER BY t.owner_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.owner_id FROM continuum_activity_tasks t WHERE t.owner_id > o.id ORDER BY t.owner_id LIMIT 1)
    FROM owners o WHERE o.id IS NOT NULL
), gone AS (
    SELECT o.id, w.name, coalesce(w.stopped_at, w.expires_at) AS since
    FROM owners o LEFT JOIN continuum_workers w ON w.id = o.id
    WHERE o.id IS NOT NULL AND (w.id IS NULL OR w.state = 'dead' OR w.expires_at < clock_timestamp())
)
SELECT t.run_id, t.command_id, t.activity, t.queue, t.attempt, t.claimed_at, t.owner_id, g.name, g.since, count(*) OVER ()
FROM gone g JOIN continuum_activity_tasks t ON t.owner_id = g.id AND t.state = 'running'
ORDER BY t.claimed_at, t.run_id, t.command_id
LIMIT %(limit)s
