-- Notes when the versions that a worker has loaded were seen last. A row that another worker is just noting is noted.
WITH mine AS MATERIALIZED (
    SELECT v.id
    FROM continuum_workers w
    JOIN continuum_workflow_versions v ON w.workflows -> v.workflow ? v.version_hash
    WHERE w.id = %(worker)s
    ORDER BY v.id
    FOR NO KEY UPDATE OF v SKIP LOCKED
)
UPDATE continuum_workflow_versions v
SET last_seen_at = statement_timestamp()
FROM mine
WHERE v.id = mine.id
