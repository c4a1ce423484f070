-- The runs that have been waiting longest, by when they were started. As overview_live, past no run that has ended: sorted at
-- the end only, since an index by start would lead through all that have.
WITH RECURSIVE hop AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > hop.namespace ORDER BY r.namespace LIMIT 1)
    FROM hop
    WHERE hop.namespace IS NOT NULL
)
SELECT live.id
FROM hop
CROSS JOIN LATERAL (
    SELECT r.id, r.started_at
    FROM continuum_runs r
    WHERE r.namespace = hop.namespace AND r.state IN ('suspended', 'stuck_unknown_version')
) AS live
WHERE hop.namespace IS NOT NULL
ORDER BY live.started_at, live.id
LIMIT %(limit)s
