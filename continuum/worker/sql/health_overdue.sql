-- Runs that nobody has although their time came a while ago, by workflow, with whether a live worker has that. Walks the partial index on such runs.
SELECT r.workflow, count(*), min(r.next_wakeup_at), (array_agg(r.id ORDER BY r.next_wakeup_at))[:3],
    EXISTS (
        SELECT FROM continuum_workers w
        WHERE w.state = 'alive' AND w.expires_at >= statement_timestamp()
          AND (w.workflows IS NULL OR w.workflows ? r.workflow)
    )
FROM continuum_runs r
WHERE r.owner_id IS NULL AND r.next_wakeup_at < statement_timestamp() - make_interval(secs => %(grace)s)
  AND r.state IN ('pending', 'suspended')
GROUP BY r.workflow
ORDER BY 2 DESC, 1
