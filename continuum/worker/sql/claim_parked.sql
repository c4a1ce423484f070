-- Claim parked runs that this worker's code has not been tried with.
--
-- "kinds" skips through continuum_runs_stuck_idx from one combination of workflow, version and versions tried to the next: what
-- is read follows the number of these, not of the runs, however many are parked for want of code that nobody has.
-- A version stands there as "number:hash"; with "<id" behind it, workers that have come later may try it once more.
-- The code that a run would get is that of its own version number, or of the highest where that is not loaded.
WITH RECURSIVE lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state = 'alive' FOR KEY SHARE
), kinds (workflow, version, version_hash, tried_versions) AS (
    (SELECT r.workflow, r.version, r.version_hash, r.tried_versions FROM continuum_runs r
     WHERE r.owner_id IS NULL AND r.state = 'stuck_unknown_version'
     ORDER BY r.workflow, r.version, r.version_hash, r.tried_versions LIMIT 1)
    UNION ALL
    SELECT n.workflow, n.version, n.version_hash, n.tried_versions
    FROM kinds k
    CROSS JOIN LATERAL (
        SELECT r.workflow, r.version, r.version_hash, r.tried_versions FROM continuum_runs r
        WHERE r.owner_id IS NULL AND r.state = 'stuck_unknown_version'
          AND (r.workflow, r.version, r.version_hash, r.tried_versions)
            > (k.workflow, k.version, k.version_hash, k.tried_versions)
        ORDER BY r.workflow, r.version, r.version_hash, r.tried_versions LIMIT 1
    ) n
), loaded AS MATERIALIZED (
    SELECT l.workflow, l.version, l.version_hash, l.token, l.is_highest
    FROM unnest(
        %(loaded_names)s::text[], %(loaded_versions)s::integer[], %(loaded_hashes)s::text[], %(loaded_tokens)s::text[],
        %(loaded_highest)s::boolean[]
    ) AS l (workflow, version, version_hash, token, is_highest)
), untried AS MATERIALIZED (
    SELECT k.workflow, k.version, k.version_hash, k.tried_versions
    FROM kinds k
    JOIN loaded l ON l.workflow = k.workflow AND (
        l.version = k.version
        OR l.is_highest AND NOT EXISTS (SELECT 1 FROM loaded o WHERE o.workflow = k.workflow AND o.version = k.version)
    )
    WHERE (NOT %(pinned)s OR l.version_hash = k.version_hash) AND NOT EXISTS (
        SELECT 1 FROM unnest(string_to_array(k.tried_versions, ' ')) AS t (tried)
        WHERE split_part(t.tried, '<', 1) = l.token
          AND coalesce(nullif(split_part(t.tried, '<', 2), '')::bigint >= %(worker)s, true)
    )
), parked AS MATERIALIZED (
    SELECT p.id, p.claimed_at
    FROM untried u
    CROSS JOIN LATERAL (
        SELECT r.id, r.claimed_at FROM continuum_runs r
        WHERE r.owner_id IS NULL AND r.state = 'stuck_unknown_version' AND r.workflow = u.workflow AND r.version = u.version
          AND r.version_hash = u.version_hash AND r.tried_versions = u.tried_versions
        ORDER BY r.id
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) p
    LIMIT %(limit)s
)
UPDATE continuum_runs r
SET owner_id = lease.id, lease_token = nextval('continuum_lease_token_seq'), state = 'running',
    claimed_at = coalesce(r.claimed_at, statement_timestamp()), next_wakeup_at = NULL
FROM parked, lease
WHERE r.id = parked.id
RETURNING r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed, r.depth,
    (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
    (extract(epoch FROM r.deadline_at) * 1000000)::bigint, r.continued_from_run_id IS NOT NULL, parked.claimed_at IS NULL,
    EXISTS (SELECT 1 FROM continuum_inbox i WHERE i.run_id = r.id AND i.consumed_at IS NULL), r.recoveries
