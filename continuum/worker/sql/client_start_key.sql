-- The run that an idempotency key was used for.
SELECT result::text FROM continuum_activity_results WHERE run_id = %(key_id)s AND command_id = 'start'
