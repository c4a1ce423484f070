-- The histories of runs just claimed. Each lies in one partition, in the order of the primary key.
SELECT e.run_id, e.seq, e.type, e.command_id, e.name, e.data::text, (extract(epoch FROM e.recorded_at) * 1000000)::bigint
FROM continuum_events e
WHERE e.run_id = ANY(%(run_ids)s::uuid[])
ORDER BY e.run_id, e.seq
