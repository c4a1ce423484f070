-- Makes a run that shares the history of another up to a point: the events are copied, numbered anew, and followed by the
-- mark that says where from. What a retry of the source has left out is left out here too, so its record leaves out
-- nothing any more. Nobody waits for a fork, so it has no parent; nor does it take over the source's time limit.
-- The source is not locked: it may go on meanwhile.
WITH forked AS (
    INSERT INTO continuum_runs (
        id, workflow, version, version_hash, namespace, attributes, priority, input, correlation_id, depth,
        state, started_at, claimed_at, next_wakeup_at, forked_from_run_id
    )
    SELECT
        %(id)s::uuid, workflow, version, version_hash, namespace, attributes, priority, input, correlation_id, depth,
        'suspended', statement_timestamp(), claimed_at, statement_timestamp(), id
    FROM continuum_runs
    WHERE id = %(run_id)s
    RETURNING id
),
shared AS (
    INSERT INTO continuum_events (run_id, seq, type, command_id, name, data, recorded_at)
    SELECT
        %(id)s::uuid, kept.place, event.type, event.command_id, event.name,
        CASE
            WHEN event.type <> 'run_resumed' THEN event.data
            ELSE json_build_object(
                'dropped', '[]'::json,
                'renewed', coalesce(event.data -> 'renewed', '[]'), 'again', coalesce(event.data -> 'again', '{}')
            )
        END,
        timestamptz 'epoch' + kept.time_us * interval '1 microsecond'
    FROM ROWS FROM (unnest(%(seqs)s::integer[]), unnest(%(times)s::bigint[])) WITH ORDINALITY AS kept (seq, time_us, place)
    JOIN continuum_events AS event ON event.run_id = %(run_id)s AND event.seq = kept.seq
    RETURNING seq
),
marked AS (
    INSERT INTO continuum_events (run_id, seq, type, data, recorded_at)
    VALUES (
        %(id)s::uuid, cardinality(%(seqs)s::integer[]) + 1, 'run_forked', %(mark)s::json,
        timestamptz 'epoch' + %(mark_time)s::bigint * interval '1 microsecond'
    )
)
SELECT (SELECT count(*) FROM forked), (SELECT count(*) FROM shared)
