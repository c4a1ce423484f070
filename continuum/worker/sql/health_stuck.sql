-- Parked runs by workflow: code is missing, or asks for something else than their history holds. With whether a live worker
-- has that workflow.
SELECT r.workflow, count(*), min(r.started_at), (array_agg(r.id ORDER BY r.started_at))[:3],
    EXISTS (
        SELECT FROM continuum_workers w
        WHERE w.state = 'alive' AND w.expires_at >= statement_timestamp()
          AND (w.workflows IS NULL OR w.workflows ? r.workflow)
    )
FROM continuum_runs r
WHERE r.state = 'stuck_unknown_version'
GROUP BY r.workflow
ORDER BY 2 DESC, 1
