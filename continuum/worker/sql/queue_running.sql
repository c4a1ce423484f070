-- How many tasks of a queue workers are at, in the whole cluster.
SELECT count(*) FROM continuum_activity_tasks t
WHERE t.owner_id IS NOT NULL AND t.state = 'running' AND t.queue = %(queue)s
