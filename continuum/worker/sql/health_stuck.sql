-- Parked runs by workflow: code is missing, or asks for something else than their history holds.
SELECT r.workflow, count(*), min(r.started_at), (array_agg(r.id ORDER BY r.started_at))[:3]
FROM continuum_runs r
WHERE r.state = 'stuck_unknown_version'
GROUP BY r.workflow
ORDER BY 2 DESC, 1
