-- Runs that a worker has and that sleep on although something of theirs was due a while ago.
SELECT r.owner_id, count(*), min(r.next_wakeup_at), (array_agg(r.id ORDER BY r.next_wakeup_at))[:3]
FROM continuum_runs r
WHERE r.owner_id IS NOT NULL AND r.state = 'suspended'
  AND r.next_wakeup_at < statement_timestamp() - make_interval(secs => %(grace)s)
GROUP BY r.owner_id
ORDER BY 2 DESC, 1
