-- How the run at the tip of a chain of continued runs stands. Result and error are null until it has ended.
WITH RECURSIVE chain AS (
    SELECT id, continued_to_run_id, 0 AS depth
    FROM continuum_runs
    WHERE id = %(run_id)s AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
    UNION ALL
    SELECT run.id, run.continued_to_run_id, chain.depth + 1
    FROM chain JOIN continuum_runs AS run ON run.id = chain.continued_to_run_id
    WHERE chain.depth < 100000
)
SELECT run.id, run.state, run.workflow, run.version, run.result::text, run.error::text
FROM (SELECT id FROM chain ORDER BY depth DESC LIMIT 1) AS tip JOIN continuum_runs AS run ON run.id = tip.id
