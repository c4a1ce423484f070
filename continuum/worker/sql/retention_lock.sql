-- Of a batch of runs that were due: locks those that still are, and returns the ones that nothing needs which stays.
-- One that was retried meanwhile is not due any more, one that somebody is about to retry is locked. Whoever needs it (a
-- child its parent, an earlier run of a chain the next) then stays as well: what it needs must be gone or go with it.
WITH RECURSIVE locked AS MATERIALIZED (
    SELECT r.id, r.parent_run_id, r.continued_to_run_id
    FROM continuum_runs r
    WHERE r.id = ANY(%(ids)s::uuid[])
      AND r.state IN ('completed', 'failed', 'cancelled') AND r.retention_until IS NOT NULL
      AND CASE
          WHEN %(ended_before)s::timestamptz IS NULL THEN r.retention_until < %(now)s::timestamptz
          ELSE r.completed_at < %(ended_before)s::timestamptz
      END
    FOR UPDATE SKIP LOCKED
), needs AS MATERIALIZED (
    SELECT l.id, other.id AS other
    FROM locked l
    JOIN continuum_runs other ON other.id IN (l.parent_run_id, l.continued_to_run_id)
), stays (id) AS (
    SELECT n.id FROM needs n WHERE n.other NOT IN (SELECT id FROM locked)
    UNION
    SELECT n.id FROM stays JOIN needs n ON n.other = stays.id
)
SELECT id FROM locked WHERE id NOT IN (SELECT id FROM stays)
