-- Unread messages of every run this worker owns, oldest first: what the poll looks at, in case a hint was lost. And of the runs
-- that some of them continue, at the same moment: what another worker is forwarding stands in the one inbox or in the other.
SELECT i.run_id, i.id, i.kind, i.name, i.command_id, i.payload::text, i.delivery_id
FROM continuum_inbox i
WHERE i.consumed_at IS NULL
  AND EXISTS (SELECT 1 FROM continuum_runs r WHERE r.id = i.run_id AND r.owner_id = %(worker)s)
UNION ALL
SELECT i.run_id, i.id, i.kind, i.name, i.command_id, i.payload::text, i.delivery_id
FROM continuum_inbox i
WHERE i.consumed_at IS NULL AND i.run_id = ANY(%(before)s::uuid[])
ORDER BY id
LIMIT %(limit)s
