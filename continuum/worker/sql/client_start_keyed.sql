-- Starts one run unless its idempotency key is taken; then it returns no row and writes nothing.
-- The key is a row of its own: it outlives the run, and its primary key follows from namespace, workflow and key, so
-- that it is unique without a second unique index on the hot table. Of two that race for it, the second waits here for
-- the first's transaction and learns the outcome.
WITH key AS (
    INSERT INTO continuum_activity_results (run_id, command_id, kind, name, idempotency_key, result)
    VALUES (
        %(key_id)s, 'start', 'start_key', %(workflow)s, %(idempotency_key)s, to_json(%(id)s::text)
    )
    ON CONFLICT (run_id, command_id) DO NOTHING
    RETURNING 1
)
INSERT INTO continuum_runs (
    id, correlation_id, workflow, version, version_hash, namespace, attributes, priority, input,
    started_at, next_wakeup_at, deadline_at, idempotency_key
)
SELECT
    %(id)s::uuid, %(id)s::uuid, %(workflow)s, %(version)s, %(version_hash)s, %(namespace)s, %(attributes)s::jsonb,
    %(priority)s, %(input)s::json,
    statement_timestamp(),
    coalesce(%(start_at)s::timestamptz, statement_timestamp()),
    greatest(%(start_at)s::timestamptz, statement_timestamp()) + %(timeout_us)s::bigint * interval '1 microsecond',
    %(idempotency_key)s
FROM key
RETURNING started_at, next_wakeup_at, deadline_at
