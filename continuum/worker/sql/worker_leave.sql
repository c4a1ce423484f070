-- Ends a node's lease by its own will. What it may still own is free for the taking at once.
-- FOR UPDATE waits for a journal commit of this node under way (FOR KEY SHARE), which a plain update would overtake.
WITH mine AS (
    SELECT id FROM continuum_workers WHERE id = %(worker)s AND state <> 'dead' FOR UPDATE
)
UPDATE continuum_workers AS worker
SET state = 'dead', stopped_at = clock_timestamp(), session_lock = false
FROM mine
WHERE worker.id = mine.id
