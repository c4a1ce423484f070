-- Continued runs with unread messages: each came from somebody who still saw the run as the tip of its chain. A walk over the
-- unread messages, as every poll makes one to find a worker's own.
SELECT DISTINCT i.run_id
FROM continuum_inbox i
WHERE i.consumed_at IS NULL
  AND EXISTS (SELECT 1 FROM continuum_runs r WHERE r.id = i.run_id AND r.continued_to_run_id IS NOT NULL)
LIMIT %(limit)s
