-- Tells the other nodes that this node's lock may be relied on: from here on its absence means the process is gone.
UPDATE continuum_workers
SET session_lock = true
WHERE id = %(worker)s AND state <> 'dead' AND NOT session_lock
