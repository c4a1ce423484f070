-- The runs that have been waiting longest, out of the first few that were started since the oldest live one was, ended or not:
-- where many of those still live, they are among them. Goes from one namespace to the next, and in each along the index on
-- (namespace, started_at). When fewer are found than were asked for, others may have been waiting as long: see
-- "overview_waits".
WITH RECURSIVE hop AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > hop.namespace ORDER BY r.namespace LIMIT 1)
    FROM hop
    WHERE hop.namespace IS NOT NULL
)
SELECT front.id
FROM (
    SELECT first.id, first.state, first.started_at
    FROM hop
    CROSS JOIN LATERAL (
        SELECT r.id, r.state, r.started_at
        FROM continuum_runs r
        WHERE r.namespace = hop.namespace AND r.state <> 'running' AND r.started_at >= %(since)s::timestamptz
        ORDER BY r.started_at, r.id
        LIMIT %(front)s
    ) AS first
    WHERE hop.namespace IS NOT NULL
    ORDER BY first.started_at, first.id
    LIMIT %(front)s
) AS front
WHERE front.state IN ('suspended', 'stuck_unknown_version')
ORDER BY front.started_at, front.id
LIMIT %(limit)s
