-- Gives keys back whose commands have failed for good, or are not wanted any more.
DELETE FROM continuum_activity_results k
USING unnest(%(key_ids)s::uuid[], %(run_ids)s::uuid[], %(command_ids)s::text[]) AS o (key_id, run_id, command_id)
WHERE k.run_id = o.key_id AND k.command_id = 'key'
  AND k.result -> 'holder' ->> 0 = o.run_id::text AND k.result -> 'holder' ->> 1 = o.command_id
