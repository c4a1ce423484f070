-- One page of idempotency keys, in the order of the primary key: deletes, if told to, those that are older than the time given
-- and that nobody needs. A key of a start is needed while its run is there; a key of an activity while the run lives that is
-- at work on it.
WITH page AS MATERIALIZED (
    SELECT k.run_id, k.command_id, k.kind, k.created_at, k.result
    FROM continuum_activity_results k
    WHERE (k.run_id, k.command_id) > (%(after_id)s::uuid, %(after_command)s)
      AND k.kind IN ('start_key', 'activity_key')
    ORDER BY k.run_id, k.command_id
    LIMIT %(batch)s
), old AS MATERIALIZED (
    SELECT p.run_id, p.command_id
    FROM page p
    LEFT JOIN continuum_runs r ON r.id = CASE p.kind
        WHEN 'start_key' THEN (p.result #>> '{}')::uuid
        ELSE (p.result #>> '{holder,0}')::uuid
    END
    WHERE p.created_at < %(before)s::timestamptz
      AND (r.id IS NULL OR p.kind = 'activity_key' AND r.state IN ('completed', 'failed', 'cancelled'))
), gone AS (
    DELETE FROM continuum_activity_results k
    USING old
    WHERE %(execute)s AND k.run_id = old.run_id AND k.command_id = old.command_id AND k.created_at < %(before)s::timestamptz
)
SELECT
    (SELECT count(*) FROM old),
    (SELECT count(*) FROM page),
    (SELECT p.run_id FROM page p ORDER BY p.run_id DESC, p.command_id DESC LIMIT 1),
    (SELECT p.command_id FROM page p ORDER BY p.run_id DESC, p.command_id DESC LIMIT 1)
