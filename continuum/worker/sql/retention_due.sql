-- The runs that may be deleted, in the order in which they may: parents before their children, and of a chain of continued runs
-- the last one first, so that whatever is still there when this is interrupted still finds what it needs.
--
-- A run is due when it has ended and its time is over. It stays, due or not, as long as somebody may come back to it:
-- the earlier runs of a chain whose tip stays (signals and results are sought from the first on), the children of a run that
-- stays (a retry of it would start them anew), the parent of a child that lives. From the few runs that begin such a line the
-- rest is found by index, a step for each relative.
WITH RECURSIVE standing AS MATERIALIZED (
    SELECT
        r.id, r.parent_run_id, r.continued_from_run_id, r.depth, r.workflow,
        r.state NOT IN ('completed', 'failed', 'cancelled') AS lives,
        coalesce(
            r.state IN ('completed', 'failed', 'cancelled') AND r.retention_until IS NOT NULL
            AND CASE
                WHEN %(ended_before)s::timestamptz IS NULL THEN r.retention_until < %(now)s::timestamptz
                ELSE r.completed_at < %(ended_before)s::timestamptz
            END,
            false
        ) AS due
    FROM continuum_runs r
), stays (id) AS (
    SELECT s.continued_from_run_id FROM standing s WHERE NOT s.due AND s.continued_from_run_id IS NOT NULL
    UNION
    SELECT s.parent_run_id FROM standing s WHERE s.lives AND s.parent_run_id IS NOT NULL
    UNION
    SELECT c.id FROM standing c JOIN standing p ON p.id = c.parent_run_id WHERE c.due AND NOT p.due
    UNION
    SELECT relative.id
    FROM stays
    CROSS JOIN LATERAL (
        SELECT r.continued_from_run_id AS id
        FROM continuum_runs r
        WHERE r.id = stays.id AND r.continued_from_run_id IS NOT NULL
        UNION ALL
        SELECT c.id FROM continuum_runs c WHERE c.parent_run_id = stays.id
    ) AS relative
)
SELECT s.id, s.workflow
FROM standing s
WHERE s.due AND NOT EXISTS (SELECT FROM stays WHERE stays.id = s.id)
ORDER BY s.depth, s.id DESC
