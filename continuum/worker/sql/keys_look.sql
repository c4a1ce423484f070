-- How it stands with keys: the value, or who is at it, and whether that run is still one that can bring it to an end. A run
-- that failed gives its keys up like any other that has ended; should it be retried, it has to ask again.
SELECT
    k.run_id,
    (k.result -> 'value')::text,
    (k.result -> 'holder' ->> 0)::uuid,
    k.result -> 'holder' ->> 1,
    r.id IS NOT NULL AND r.state NOT IN ('completed', 'failed', 'cancelled')
FROM continuum_activity_results k
LEFT JOIN continuum_runs r ON r.id = (k.result -> 'holder' ->> 0)::uuid
WHERE k.run_id = ANY(%(key_ids)s::uuid[]) AND k.command_id = 'key'
