-- The outline of a history: what tells which of its events count, and in which order. The payloads, which may be large, stay
-- where they are. In place of its name, each event bears its number, which the fork's numbering would lose.
SELECT
    e.seq, e.type, e.command_id, e.seq::text,
    CASE
        WHEN e.type LIKE 'run\_%%' THEN e.data::text
        WHEN e.type IN ('side_effect', 'patched') THEN json_build_object('after', e.data -> 'after')::text
        ELSE '{}'
    END,
    (extract(epoch FROM e.recorded_at) * 1000000)::bigint
FROM continuum_events e
WHERE e.run_id = %(run_id)s
ORDER BY e.seq
