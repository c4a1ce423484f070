-- Is there another worker that would take activities from the default queue?
SELECT EXISTS (
    SELECT 1 FROM continuum_workers w
    WHERE w.id <> %(worker)s AND w.state = 'alive' AND w.expires_at > clock_timestamp()
      AND (json_array_length(w.queues) = 0 OR w.queues::jsonb ? 'default')
)
