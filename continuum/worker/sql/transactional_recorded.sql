-- The result that a command has on record; NULL for a fence.
SELECT result::text FROM continuum_activity_results WHERE run_id = %(run_id)s AND command_id = %(command_id)s
