-- Takes keys from holders that are no more, and answers with those that were still theirs.
UPDATE continuum_activity_results k
SET result = json_build_object('holder', json_build_array(a.run_id, a.command_id)), created_at = clock_timestamp()
FROM unnest(
    %(key_ids)s::uuid[], %(old_runs)s::uuid[], %(old_commands)s::text[], %(run_ids)s::uuid[], %(command_ids)s::text[]
) AS a (key_id, old_run, old_command, run_id, command_id)
WHERE k.run_id = a.key_id AND k.command_id = 'key'
  AND k.result -> 'holder' ->> 0 = a.old_run::text AND k.result -> 'holder' ->> 1 = a.old_command
RETURNING k.run_id
