-- Claims keys for the commands that ask for them, and answers with those that were free. Of two that ask at once, the
-- second waits here for the first's transaction. In order of the keys, so that two batches cannot wait for each other.
INSERT INTO continuum_activity_results (run_id, command_id, kind, name, idempotency_key, result)
SELECT a.key_id, 'key', 'activity_key', a.activity, a.key, json_build_object('holder', json_build_array(a.run_id, a.command_id))
FROM unnest(
    %(key_ids)s::uuid[], %(activities)s::text[], %(keys)s::text[], %(run_ids)s::uuid[], %(command_ids)s::text[]
) AS a (key_id, activity, key, run_id, command_id)
ORDER BY a.key_id
ON CONFLICT (run_id, command_id) DO NOTHING
RETURNING run_id
