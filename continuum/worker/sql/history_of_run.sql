-- A part of the history of one run just claimed: its id, which is known, is not said with each event. The order is that of
-- the primary key; to see that they are in order takes the server next to no time.
SELECT e.seq, e.type, e.command_id, e.name, e.data::text, (extract(epoch FROM e.recorded_at) * 1000000)::bigint
FROM continuum_events e
WHERE e.run_id = %(run_id)s AND e.seq > %(after)s AND e.seq <= %(upto)s
ORDER BY e.seq
