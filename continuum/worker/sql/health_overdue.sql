-- Runs that nobody has although their time came a while ago, by workflow, with whether a live worker has that. Walks the partial index on such runs.
--
-- A run whose worker has given it back, or has died, goes on first: it got the time of the first in line (see journal.sql),
-- which may be long past. But it cannot have been waiting for longer than since it was first claimed.
SELECT r.workflow, count(*), min(greatest(r.next_wakeup_at, r.claimed_at)),
    (array_agg(r.id ORDER BY greatest(r.next_wakeup_at, r.claimed_at)))[:3],
    EXISTS (
        SELECT FROM continuum_workers w
        WHERE w.state = 'alive' AND w.expires_at >= statement_timestamp()
          AND (w.workflows IS NULL OR w.workflows ? r.workflow)
    )
FROM continuum_runs r
WHERE r.owner_id IS NULL AND r.next_wakeup_at < statement_timestamp() - make_interval(secs => %(grace)s)
  AND r.state IN ('pending', 'suspended')
  AND (r.claimed_at IS NULL OR r.claimed_at < statement_timestamp() - make_interval(secs => %(grace)s))
GROUP BY r.workflow
ORDER BY 2 DESC, 1
