-- How many runs there are, how many have ended, how many of these are kept for ever, and how many are due, relatives or not.
SELECT
    count(*),
    count(*) FILTER (WHERE ended),
    count(*) FILTER (WHERE ended AND retention_until IS NULL),
    count(*) FILTER (
        WHERE ended AND retention_until IS NOT NULL
        AND CASE
            WHEN %(ended_before)s::timestamptz IS NULL THEN retention_until < %(now)s::timestamptz
            ELSE completed_at < %(ended_before)s::timestamptz
        END
    )
FROM (
    SELECT state IN ('completed', 'failed', 'cancelled') AS ended, retention_until, completed_at FROM continuum_runs
) AS runs
