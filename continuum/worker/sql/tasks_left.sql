-- Is there anything ready, now or later, that a worker could do? Asked by workers that stop when nothing is left.
SELECT EXISTS (
    SELECT 1 FROM continuum_activity_tasks t
    WHERE t.state = 'ready' AND (%(queues)s::text[] IS NULL OR t.queue = ANY(%(queues)s::text[]))
      AND t.activity = ANY(%(activities)s::text[])
)
