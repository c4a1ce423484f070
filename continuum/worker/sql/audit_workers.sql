-- The workers that are alive and run workflows, and which versions they have loaded: null where a worker does not tell.
SELECT w.id, w.name, w.workflows::text
FROM continuum_workers w
WHERE w.state <> 'dead' AND w.expires_at > clock_timestamp()
  AND (json_array_length(w.queues) = 0 OR w.queues::jsonb ? 'default')
ORDER BY w.id
