-- How the queues stand, and whether a live worker serves each. A worker without a list of queues serves all.
SELECT
    t.queue,
    count(*) FILTER (WHERE t.state = 'ready' AND t.due_at <= statement_timestamp()),
    extract(epoch FROM statement_timestamp() - min(t.due_at) FILTER (WHERE t.state = 'ready'))::float8,
    count(*) FILTER (WHERE t.state = 'running'),
    EXISTS (
        SELECT FROM continuum_workers w
        WHERE w.state = 'alive' AND w.expires_at >= statement_timestamp()
          AND (json_array_length(w.queues) = 0 OR w.queues::jsonb ? t.queue)
    )
FROM continuum_activity_tasks t
WHERE t.state IN ('ready', 'running')
GROUP BY t.queue
ORDER BY t.queue
