-- Locks a run that is to go on where it failed, and tells how it stands.
-- Of two that want the same, the second waits here for the first and then sees a run that has not failed any more. Parents
-- are locked before their children, and these by id: two retries that meet cannot deadlock.
SELECT state, continued_to_run_id
FROM continuum_runs
WHERE id = %(run_id)s AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
FOR UPDATE
