-- How runs stand, and which of them stay whatever their time: what "retention_due" and "retention_survey" go on from.
--
-- A run is due when it has ended and its time is over. It stays, due or not, as long as somebody may come back to it:
-- the earlier runs of a chain whose tip stays (signals and results are sought from the first on), the children of a run that
-- stays (a retry of it would start them anew), the parent of a child that lives. From the few runs that begin such a line the
-- rest is found by index, a step for each relative. Most runs have no relatives, and are looked at once only, by what follows.
WITH RECURSIVE standing AS NOT MATERIALIZED (
    SELECT
        r.id, r.parent_run_id, r.continued_from_run_id, r.depth, r.workflow, r.retention_until,
        r.state IN ('completed', 'failed', 'cancelled') AS ended,
        coalesce(
            r.state IN ('completed', 'failed', 'cancelled') AND r.retention_until IS NOT NULL
            AND CASE
                WHEN %(ended_before)s::timestamptz IS NULL THEN r.retention_until < %(now)s::timestamptz
                ELSE r.completed_at < %(ended_before)s::timestamptz
            END,
            false
        ) AS due
    FROM continuum_runs r
), related AS MATERIALIZED (
    SELECT s.id, s.parent_run_id, s.continued_from_run_id, s.ended, s.due
    FROM standing s
    WHERE s.parent_run_id IS NOT NULL OR s.continued_from_run_id IS NOT NULL
), stays (id) AS (
    SELECT s.continued_from_run_id FROM related s WHERE NOT s.due AND s.continued_from_run_id IS NOT NULL
    UNION
    SELECT s.parent_run_id FROM related s WHERE NOT s.ended AND s.parent_run_id IS NOT NULL
    UNION
    SELECT c.id FROM related c JOIN standing p ON p.id = c.parent_run_id WHERE c.due AND NOT p.due
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
