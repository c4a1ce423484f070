-- Parked runs for which other code than that which parked them is loaded now: let them be tried again.
UPDATE continuum_runs r
SET state = 'suspended', next_wakeup_at = now()
FROM unnest(%(names)s::text[], %(hashes)s::text[]) AS v (workflow, version_hash)
WHERE r.state = 'stuck_unknown_version' AND r.owner_id IS NULL AND r.workflow = v.workflow
  AND (r.error -> 'details' ->> 'version_hash') IS DISTINCT FROM v.version_hash
