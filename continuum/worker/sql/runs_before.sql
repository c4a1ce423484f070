-- The runs that some runs continue, a few steps back. Whoever wrote to one of these, and was committed just after it had been
-- continued, may have written to its successor since: of the two messages the first must be read first.
WITH RECURSIVE line AS (
    SELECT r.id AS run_id, r.continued_from_run_id AS id, 1 AS steps
    FROM unnest(%(run_ids)s::uuid[]) AS g (id) JOIN continuum_runs r ON r.id = g.id
    WHERE r.continued_from_run_id IS NOT NULL
    UNION ALL
    SELECT l.run_id, r.continued_from_run_id, l.steps + 1
    FROM line l JOIN continuum_runs r ON r.id = l.id
    WHERE r.continued_from_run_id IS NOT NULL AND l.steps < %(steps)s
)
SELECT l.run_id, l.id FROM line l
