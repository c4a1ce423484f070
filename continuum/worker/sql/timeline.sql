-- What a timeline draws of a run's history: when things began and ended, and how. No payload is read.
SELECT
    e.seq, e.type, e.command_id, e.name, (extract(epoch FROM e.recorded_at) * 1000000)::bigint,
    CASE WHEN e.type LIKE 'activity\_%%' THEN (e.data ->> 'took')::bigint END,
    CASE WHEN e.type LIKE 'activity\_%%' THEN coalesce((e.data ->> 'attempt')::integer, 1) END,
    CASE WHEN e.type IN ('activity_failed', 'activity_retried', 'child_failed', 'run_failed') THEN
        coalesce(e.data -> 'error' ->> 'type', e.data ->> 'type', e.data ->> 'state')
    END,
    CASE WHEN e.type LIKE 'child\_%%' THEN e.data ->> 'child' WHEN e.type = 'run_continued' THEN e.data ->> 'to' END,
    CASE WHEN e.type = 'timer_fired' THEN e.data ->> 'args' END
FROM continuum_events e
WHERE e.run_id = %(run_id)s
ORDER BY e.seq DESC
LIMIT %(limit)s
