-- Every version that a worker has ever loaded, oldest first.
SELECT v.workflow, v.version, v.version_hash, v.patch_sites::text, v.first_seen_at, v.last_seen_at
FROM continuum_workflow_versions v
ORDER BY v.first_seen_at, v.id
