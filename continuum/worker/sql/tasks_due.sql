-- What is ready in the queues a worker serves: for each queue and priority, whether a task is due, and when the next one will be.
--
-- Skips along continuum_activity_tasks_ready_idx from queue to queue ("names", when all queues are served) and from priority
-- to priority: the cost follows the number of queues and priorities, not of tasks.
WITH RECURSIVE names (queue) AS (
    (SELECT t.queue FROM continuum_activity_tasks t
     WHERE t.state = 'ready' AND %(queues)s::text[] IS NULL
     ORDER BY t.queue LIMIT 1)
    UNION ALL
    SELECT (SELECT t.queue FROM continuum_activity_tasks t
            WHERE t.state = 'ready' AND t.queue > n.queue
            ORDER BY t.queue LIMIT 1)
    FROM names n WHERE n.queue IS NOT NULL
), served (queue) AS (
    SELECT n.queue FROM names n WHERE n.queue IS NOT NULL
    UNION ALL
    SELECT unnest(%(queues)s::text[])
), heads (queue, priority) AS (
    SELECT s.queue, (SELECT t.priority FROM continuum_activity_tasks t
                     WHERE t.state = 'ready' AND t.queue = s.queue
                     ORDER BY t.priority DESC LIMIT 1)
    FROM served s
    UNION ALL
    SELECT h.queue, (SELECT t.priority FROM continuum_activity_tasks t
                     WHERE t.state = 'ready' AND t.queue = h.queue AND t.priority < h.priority
                     ORDER BY t.priority DESC LIMIT 1)
    FROM heads h WHERE h.priority IS NOT NULL
)
SELECT h.queue, h.priority,
    -- Not EXISTS: planned once, that would read all that is due into a hash table.
    coalesce((SELECT true FROM continuum_activity_tasks t
              WHERE t.state = 'ready' AND t.queue = h.queue AND t.priority = h.priority AND t.due_at <= statement_timestamp()
              ORDER BY t.due_at LIMIT 1), false),
    (SELECT (extract(epoch FROM t.due_at - statement_timestamp()) * 1000000)::bigint FROM continuum_activity_tasks t
     WHERE t.state = 'ready' AND t.queue = h.queue AND t.priority = h.priority AND t.due_at > statement_timestamp()
     ORDER BY t.due_at LIMIT 1)
FROM heads h
WHERE h.priority IS NOT NULL
