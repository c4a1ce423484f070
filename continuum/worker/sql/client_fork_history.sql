-- The outline of a history: what tells which of its events count. The payloads, which may be large, stay where they are.
SELECT
    seq, type, command_id, name,
    CASE WHEN type LIKE 'run\_%%' THEN data::text ELSE '{}' END,
    (extract(epoch FROM recorded_at) * 1000000)::bigint
FROM continuum_events
WHERE run_id = %(run_id)s
ORDER BY seq
