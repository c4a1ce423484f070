-- Runs that failed lately, by workflow and error; a retry takes a run out of here.
SELECT r.workflow, r.error ->> 'type', count(*), max(r.completed_at), (array_agg(r.id ORDER BY r.completed_at DESC))[:3]
FROM continuum_runs r
WHERE r.state = 'failed' AND r.completed_at > statement_timestamp() - make_interval(secs => %(since)s)
GROUP BY 1, 2
ORDER BY 3 DESC, 1, 2
