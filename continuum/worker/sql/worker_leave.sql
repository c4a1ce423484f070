-- Ends a node's lease by its own will. What it may still own is free for the taking at once.
UPDATE continuum_workers
SET state = 'dead', stopped_at = clock_timestamp(), session_lock = false
WHERE id = %(worker)s AND state <> 'dead'
