-- Tells the owner of a run, or all workers if it has none, that there is mail for it. It goes right behind the statement
-- that sent the message, as a transaction of its own; see hint_of_run. What that one has not sent is not there to be told of.
SELECT
    run.id,
    set_config('synchronous_commit', 'off', true),
    pg_notify(coalesce('continuum_worker_' || run.owner_id, 'continuum_mail'), replace(run.id::text, '-', ''))
FROM continuum_runs AS run
WHERE run.id = %(run_id)s
  AND EXISTS (SELECT FROM continuum_inbox AS message WHERE message.run_id = run.id AND message.consumed_at IS NULL)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension AS extension WHERE extension.extname = 'citus')
