-- How long the histories of some runs are: one look at the end of each in the primary key.
SELECT c.id, coalesce((SELECT e.seq FROM continuum_events e WHERE e.run_id = c.id ORDER BY e.seq DESC LIMIT 1), 0)
FROM unnest(%(run_ids)s::uuid[]) AS c (id)
