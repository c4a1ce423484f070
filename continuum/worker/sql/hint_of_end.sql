-- Tells whoever waits that a run has ended. It goes right behind the record of that, as a transaction of its own; see
-- hint_of_run. A run whose end was not recorded is not told of.
-- "coalesce" keeps the planner from looking for the run among all that have ended.
SELECT run.id, set_config('synchronous_commit', 'off', true), pg_notify('continuum_done', replace(run.id::text, '-', ''))
FROM continuum_runs AS run
WHERE run.id = %(run_id)s AND coalesce(run.completed_at, 'epoch') <> 'epoch'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension AS extension WHERE extension.extname = 'citus')
