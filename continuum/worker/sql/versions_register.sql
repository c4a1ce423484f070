-- The workflow versions a worker has loaded. Ordered, so that workers that start together cannot deadlock.
INSERT INTO continuum_workflow_versions (workflow, version, version_hash, location, patch_sites)
SELECT v.workflow, v.version, v.version_hash, v.location, v.patch_sites
FROM unnest(%(names)s::text[], %(versions)s::integer[], %(hashes)s::text[], %(locations)s::text[], %(sites)s::json[])
    AS v (workflow, version, version_hash, location, patch_sites)
ORDER BY 1, 2, 3
ON CONFLICT (workflow, version, version_hash)
DO UPDATE SET last_seen_at = now(), location = excluded.location, patch_sites = excluded.patch_sites
