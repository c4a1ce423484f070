-- The limits that this session counts against, tightest first: what is limited, connections in use, how many there may be.
-- What the server keeps for superusers and the like is not there for us. Sessions have a database and a role, which every
-- role may see; the server's own processes lack one of them.
WITH session AS (
    SELECT a.datid, a.usesysid
    FROM pg_catalog.pg_stat_activity a
    WHERE a.datid IS NOT NULL AND a.usesysid IS NOT NULL
)
SELECT l.what, l.used, l.most
FROM (
    SELECT
        'the server' AS what, count(*) AS used,
        current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
            - coalesce(current_setting('reserved_connections', true), '0')::integer AS most
    FROM session
    UNION ALL
    SELECT 'the database', (SELECT count(*) FROM session s WHERE s.datid = d.oid), d.datconnlimit
    FROM pg_catalog.pg_database d
    WHERE d.datname = current_database() AND d.datconnlimit >= 0
    UNION ALL
    SELECT 'the role', (SELECT count(*) FROM session s WHERE s.usesysid = r.oid), r.rolconnlimit
    FROM pg_catalog.pg_roles r
    WHERE r.rolname = session_user AND r.rolconnlimit >= 0
) AS l
ORDER BY l.used::float8 / greatest(l.most, 1) DESC
