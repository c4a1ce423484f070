-- Tells the workers that there is a run to claim. It goes right behind the statement that started the run: what that one
-- has not committed is not there to be told of.
-- Not in the same transaction: NOTIFY takes a cluster-wide lock until its transaction is flushed to disk. This one writes
-- nothing else, so that its commit need not wait for the disk.
-- In a database that is distributed the notification would go out from the node that has the run, where nobody listens: nobody
-- is told then, and the hint goes the other way.
SELECT run.id, set_config('synchronous_commit', 'off', true), pg_notify('continuum_ready', '')
FROM continuum_runs AS run
WHERE run.id = %(run_id)s
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension AS extension WHERE extension.extname = 'citus')
