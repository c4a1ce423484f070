-- Merges attributes into those of a run, unless they would become too big. Of two that want the same row, the second waits
-- here for the first and merges into what that has left.
-- A run without an answer from "merged" is either not there or refused, which "found" tells apart.
WITH found AS (
    SELECT id
    FROM continuum_runs
    WHERE id = %(run_id)s AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
),
merged AS (
    UPDATE continuum_runs AS run
    SET attributes = run.attributes || %(attributes)s::jsonb
    FROM found
    WHERE run.id = found.id AND octet_length((run.attributes || %(attributes)s::jsonb)::text) <= %(limit)s
    RETURNING 1
)
SELECT EXISTS (SELECT FROM found), EXISTS (SELECT FROM merged)
