-- Starts a batch of runs that differ in id and input only.
-- The inputs come as one JSON array: taking it apart keeps each text to the letter (the type is json, not jsonb), and
-- nothing has to be quoted twice as it would in an array of text. All batches of one call share one moment.
WITH moment AS (
    SELECT
        started_at,
        coalesce(%(start_at)s::timestamptz, started_at) AS wakeup_at,
        greatest(%(start_at)s::timestamptz, started_at) + %(timeout_us)s::bigint * interval '1 microsecond' AS deadline_at
    FROM coalesce(%(started_at)s::timestamptz, statement_timestamp()) AS started_at
),
started AS (
    INSERT INTO continuum_runs (
        id, correlation_id, workflow, version, version_hash, namespace, attributes, priority, input,
        started_at, next_wakeup_at, deadline_at
    )
    SELECT
        run.id, run.id, %(workflow)s, %(version)s, %(version_hash)s, %(namespace)s, %(attributes)s::jsonb, %(priority)s,
        run.input, moment.started_at, moment.wakeup_at, moment.deadline_at
    FROM moment, ROWS FROM (unnest(%(ids)s::uuid[]), json_array_elements(%(inputs)s::json)) AS run (id, input)
)
SELECT started_at, wakeup_at, deadline_at FROM moment
