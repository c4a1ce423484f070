-- What a fork needs to know of the run it starts from, before anything is written.
SELECT
    parent_run_id,
    (extract(epoch FROM started_at) * 1000000)::bigint,
    (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
FROM continuum_runs
WHERE id = %(run_id)s AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
