-- Runs that ended in a stretch of time, by workflow, state and slice of that time; with how long those of a slice took
-- together. Goes from one namespace to the next, and in each along the index on (namespace, completed_at).
WITH RECURSIVE hop AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > hop.namespace ORDER BY r.namespace LIMIT 1)
    FROM hop
    WHERE hop.namespace IS NOT NULL
)
SELECT
    ended.workflow, ended.state,
    floor(extract(epoch FROM ended.completed_at - %(since)s::timestamptz) / %(slice)s)::integer AS slice,
    count(*),
    sum(extract(epoch FROM ended.completed_at - ended.started_at))::float8
FROM hop
CROSS JOIN LATERAL (
    SELECT r.workflow, r.state, r.started_at, r.completed_at
    FROM continuum_runs r
    WHERE r.namespace = hop.namespace AND r.completed_at >= %(since)s::timestamptz
      AND r.completed_at < %(until)s::timestamptz AND r.state IN ('completed', 'failed', 'cancelled')
) AS ended
WHERE hop.namespace IS NOT NULL
GROUP BY 1, 2, 3
