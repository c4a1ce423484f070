-- Which owners of tasks are dead, or not even known? As runs_owners_gone, along continuum_activity_tasks_owner_idx.
WITH RECURSIVE owners AS (
    (
        SELECT owner_id
        FROM continuum_activity_tasks
        WHERE owner_id IS NOT NULL
        ORDER BY owner_id
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT task.owner_id
        FROM continuum_activity_tasks AS task
        WHERE task.owner_id > owners.owner_id
        ORDER BY task.owner_id
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
