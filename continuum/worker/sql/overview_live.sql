-- Runs that have not ended, by workflow and state. Goes from one namespace to the next along the index on (namespace, state),
-- and so never past the runs that have ended.
WITH RECURSIVE hop AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > hop.namespace ORDER BY r.namespace LIMIT 1)
    FROM hop
    WHERE hop.namespace IS NOT NULL
)
SELECT live.workflow, live.state, count(*), min(live.started_at)
FROM hop
CROSS JOIN LATERAL (
    SELECT r.workflow, r.state, r.started_at
    FROM continuum_runs r
    WHERE r.namespace = hop.namespace AND r.state IN ('pending', 'running', 'suspended', 'stuck_unknown_version')
) AS live
WHERE hop.namespace IS NOT NULL
GROUP BY live.workflow, live.state
