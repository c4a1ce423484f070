-- Messages that have been waiting for a while, though their run could take them: nobody seems to have been told.
--
-- Not those of runs that are parked, that are left alone for a time after an error, or whose start lies ahead; these wait
-- for good reason, but for a request to cancel. Those to a continued run are on their way to its successor.
SELECT i.kind, count(*), min(i.created_at), (array_agg(DISTINCT i.run_id))[:3]
FROM continuum_inbox i
JOIN continuum_runs r ON r.id = i.run_id
WHERE i.consumed_at IS NULL AND i.created_at < statement_timestamp() - make_interval(secs => %(grace)s)
  AND (
      r.state IN ('pending', 'running', 'suspended')
      AND (
          r.owner_id IS NOT NULL
          OR i.kind = 'cancel'
          OR NOT (r.next_wakeup_at > statement_timestamp() AND (r.state = 'pending' OR r.error IS NOT NULL))
      )
      OR r.continued_to_run_id IS NOT NULL AND i.kind IN ('signal', 'cancel')
  )
GROUP BY i.kind
ORDER BY 2 DESC, 1
