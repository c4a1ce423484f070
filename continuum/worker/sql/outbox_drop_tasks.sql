-- Nobody needs these rows any more. A worker that is at one of them notices within about a second.
DELETE FROM continuum_activity_tasks t
USING unnest(%(run_ids)s::uuid[], %(commands)s::text[]) AS d (run_id, command_id)
WHERE t.run_id = d.run_id AND t.command_id = d.command_id
