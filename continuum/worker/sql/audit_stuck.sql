-- Runs that are parked because code and history do not fit, oldest first. Found by
-- continuum_runs_namespace_state_idx, namespace by namespace, as in audit_active.
WITH RECURSIVE namespaces (namespace) AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > n.namespace ORDER BY r.namespace LIMIT 1)
    FROM namespaces n WHERE n.namespace IS NOT NULL
), oldest AS (
    SELECT r.id
    FROM namespaces n
    JOIN continuum_runs r ON r.namespace = n.namespace AND r.state = 'stuck_unknown_version'
    ORDER BY r.id
    LIMIT %(limit)s
)
SELECT r.id, r.workflow, r.version, r.version_hash, r.namespace, r.started_at, r.error::text
FROM oldest o JOIN continuum_runs r ON r.id = o.id
ORDER BY r.id
