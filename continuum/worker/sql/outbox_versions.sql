-- What becomes of runs whose code is not that which had them before: they are adopted, and have their version from now on, or
-- are parked, and remember which version has been tried. The oldest of many is forgotten: it may be tried again.
-- The rows are this worker's, and locked by the journal's statement.
UPDATE continuum_runs r
SET version = coalesce(v.version, r.version),
    version_hash = coalesce(v.version_hash, r.version_hash),
    tried_versions = CASE
        WHEN v.tried IS NULL THEN ''
        ELSE array_to_string(t.others[greatest(cardinality(t.others) - 14, 1):] || v.tried, ' ')
    END
FROM unnest(%(run_ids)s::uuid[], %(versions)s::integer[], %(hashes)s::text[], %(tried)s::text[])
    AS v (run_id, version, version_hash, tried)
JOIN continuum_runs o ON o.id = v.run_id
CROSS JOIN LATERAL (
    SELECT array(
        SELECT u.tried FROM unnest(string_to_array(o.tried_versions, ' ')) WITH ORDINALITY AS u (tried, place)
        WHERE split_part(u.tried, '<', 1) <> split_part(v.tried, '<', 1)
        ORDER BY u.place
    ) AS others
) t
WHERE r.id = v.run_id
