-- The children whose failure a failed run has suffered, or would read of as soon as it goes on: those named by the last
-- answers to the commands it failed of, and those whose report lies unread in its inbox. A child that was continued failed
-- at the tip of its chain.
WITH RECURSIVE failed AS (
    SELECT json_array_elements_text(
        CASE WHEN json_typeof(last.data -> 'failed') = 'array' THEN last.data -> 'failed' ELSE '[]' END
    ) AS command_id
    FROM (
        SELECT data
        FROM continuum_events
        WHERE run_id = %(run_id)s AND type = 'run_failed'
        ORDER BY seq DESC
        LIMIT 1
    ) AS last
),
named AS (
    SELECT DISTINCT ON (event.command_id) (event.data ->> 'child')::uuid AS id
    FROM failed JOIN continuum_events AS event
        ON event.run_id = %(run_id)s AND event.type = 'child_failed' AND event.command_id = failed.command_id
    ORDER BY event.command_id, event.seq DESC
),
reported AS (
    SELECT (payload ->> 'child')::uuid AS id
    FROM continuum_inbox
    WHERE run_id = %(run_id)s AND consumed_at IS NULL AND kind = 'child' AND payload ->> 'state' = 'failed'
),
chain AS (
    SELECT run.id, run.continued_to_run_id, run.state
    FROM continuum_runs AS run
    WHERE run.id IN (SELECT id FROM named UNION SELECT id FROM reported)
    UNION
    SELECT run.id, run.continued_to_run_id, run.state
    FROM chain JOIN continuum_runs AS run ON run.id = chain.continued_to_run_id
)
SELECT id FROM chain WHERE state = 'failed' ORDER BY id
