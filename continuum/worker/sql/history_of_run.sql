-- The history of one run just claimed, which may be a long one: its id, which is known, is not said with each event. Asked
-- for like several, which is planned as a walk along the primary key; for a single id the events would be sorted.
SELECT e.seq, e.type, e.command_id, e.name, e.data::text, (extract(epoch FROM e.recorded_at) * 1000000)::bigint
FROM continuum_events e
WHERE e.run_id = ANY(%(run_ids)s::uuid[])
ORDER BY e.run_id, e.seq
