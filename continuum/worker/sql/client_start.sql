-- Starts one run, in the caller's transaction.
-- The clock is the database's, so that workers agree with it; of the statement rather than the transaction, so that a
-- long transaction neither eats up the run's time limit nor reverses the order of its runs.
-- A time limit counts from the moment the run may begin.
INSERT INTO continuum_runs (
    id, correlation_id, workflow, version, version_hash, namespace, attributes, priority, input,
    started_at, next_wakeup_at, deadline_at
)
VALUES (
    %(id)s, %(id)s, %(workflow)s, %(version)s, %(version_hash)s, %(namespace)s, %(attributes)s, %(priority)s, %(input)s,
    statement_timestamp(),
    coalesce(%(start_at)s::timestamptz, statement_timestamp()),
    greatest(%(start_at)s::timestamptz, statement_timestamp()) + %(timeout_us)s::bigint * interval '1 microsecond'
)
RETURNING started_at, next_wakeup_at, deadline_at
