-- Which owners of runs are dead, or not even known? Finds what a sweep left behind that was itself killed half way.
--
-- Walks the distinct owners along continuum_runs_owner_idx, one probe each: the cost follows the number of nodes, not of runs.
WITH RECURSIVE owners AS (
    (
        SELECT owner_id
        FROM continuum_runs
        WHERE owner_id IS NOT NULL
        ORDER BY owner_id
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT run.owner_id
        FROM continuum_runs AS run
        WHERE run.owner_id > owners.owner_id
        ORDER BY run.owner_id
        LIMIT 1
    )
    FROM owners
    WHERE owners.owner_id IS NOT NULL
)
SELECT owners.owner_id
FROM owners
WHERE owners.owner_id IS NOT NULL
  AND NOT EXISTS (
      SELECT
      FROM continuum_workers AS worker
      WHERE worker.id = owners.owner_id AND worker.state <> 'dead'
  )
