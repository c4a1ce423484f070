-- The details that attempts made by the owners of these runs left behind.
SELECT t.run_id, t.command_id, t.heartbeat_details::text
FROM continuum_activity_tasks t
WHERE t.run_id = ANY(%(run_ids)s::uuid[]) AND t.state = 'local'
