-- The ids of the runs that can still go on, by the code they are recorded with: 16 bytes a run, oldest first.
-- Ended runs are not walked over, as in audit_active.
WITH RECURSIVE namespaces (namespace) AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > n.namespace ORDER BY r.namespace LIMIT 1)
    FROM namespaces n WHERE n.namespace IS NOT NULL
)
SELECT r.workflow, r.version, r.version_hash, string_agg(uuid_send(r.id), ''::bytea ORDER BY r.id)
FROM namespaces n
JOIN continuum_runs r
    ON r.namespace = n.namespace AND r.state IN ('pending', 'running', 'suspended', 'stuck_unknown_version')
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
