-- How many workers live, how many of these have long been without notifications, and which have let their lease run out
-- without anybody noticing.
SELECT
    count(*) FILTER (WHERE state = 'alive' AND expires_at >= statement_timestamp()),
    count(*) FILTER (WHERE state = 'draining' AND expires_at >= statement_timestamp()),
    count(*) FILTER (
        WHERE state = 'alive' AND expires_at >= statement_timestamp() AND NOT session_lock
          AND started_at < statement_timestamp() - make_interval(secs => %(grace)s)
    ),
    coalesce(
        array_agg(name ORDER BY expires_at)
            FILTER (WHERE state <> 'dead' AND expires_at < statement_timestamp() - make_interval(secs => %(grace)s)),
        '{}'
    )
FROM continuum_workers
