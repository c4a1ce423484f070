-- Unread messages of these runs, oldest first.
SELECT i.run_id, i.id, i.kind, i.name, i.command_id, i.payload::text, i.delivery_id
FROM continuum_inbox i
WHERE i.run_id = ANY(%(run_ids)s::uuid[]) AND i.consumed_at IS NULL
ORDER BY i.id
