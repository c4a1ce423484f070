-- Puts results under keys, if they are held by the commands that bring them. Written twice, the second finds no holder.
UPDATE continuum_activity_results k
SET result = json_build_object('value', o.value), created_at = clock_timestamp()
FROM unnest(
    %(key_ids)s::uuid[], %(run_ids)s::uuid[], %(command_ids)s::text[], %(values)s::json[]
) AS o (key_id, run_id, command_id, value)
WHERE k.run_id = o.key_id AND k.command_id = 'key'
  AND k.result -> 'holder' ->> 0 = o.run_id::text AND k.result -> 'holder' ->> 1 = o.command_id
