-- The histories of runs just claimed. Each lies in one partition, in the order of the primary key. The fields of an event
-- come first; the run's id is text, as a UUID made for each row would cost the client more than all the rest of it.
SELECT e.seq, e.type, e.command_id, e.name, e.data::text, (extract(epoch FROM e.recorded_at) * 1000000)::bigint,
  e.run_id::text
FROM continuum_events e
WHERE e.run_id = ANY(%(run_ids)s::uuid[])
ORDER BY e.run_id, e.seq
