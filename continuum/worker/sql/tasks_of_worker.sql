-- Every task a worker is at, as the table has it.
SELECT t.run_id, t.command_id, t.lease_token FROM continuum_activity_tasks t
WHERE t.owner_id = %(worker)s AND t.state = 'running'
