-- Claim runs whose time has come, highest priority first, longest waiting first.
--
-- "priorities" skips through the index from one priority to the next, so that runs that sleep (and stand in the same index)
-- are never walked over: each priority is read from its start up to now and no further.
-- Runs suspected of killing their workers are claimed by claim_suspects.
-- A run whose very code a live worker has is left to such a worker for a while, so that it does not go to and fro between
-- versions while both are at work ("pinned": for ever). The look at the workers is for runs of other versions only, and taken
-- once, as nothing in it depends on the run.
-- A parked run is due when its time limit is over. If no live worker has its workflow, any may end it.
-- SKIP LOCKED lets any number of workers claim at once. The lease is checked as in the journal: a worker that was declared
-- dead claims nothing.
WITH RECURSIVE lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state = 'alive' FOR KEY SHARE
), priorities (priority) AS (
    (SELECT r.priority FROM continuum_runs r WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL
     ORDER BY r.priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT r.priority FROM continuum_runs r
            WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL AND r.priority < p.priority
            ORDER BY r.priority DESC LIMIT 1)
    FROM priorities p WHERE p.priority IS NOT NULL
), due AS MATERIALIZED (
    SELECT d.id, d.claimed_at
    FROM priorities p
    CROSS JOIN LATERAL (
        SELECT r.id, r.claimed_at FROM continuum_runs r
        WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL AND r.priority = p.priority
          AND r.next_wakeup_at <= statement_timestamp()
          AND r.state IN ('pending', 'suspended', 'stuck_unknown_version') AND r.recoveries < %(suspected)s
          AND (
              r.workflow = ANY(%(workflows)s) AND (
                  r.version_hash = ANY(%(hashes)s)
                  OR r.state = 'stuck_unknown_version'
                  OR NOT %(pinned)s AND (
                      r.next_wakeup_at <= statement_timestamp() - make_interval(secs => %(patience)s)
                      OR (r.workflow, r.version_hash) NOT IN (
                          SELECT l.workflow, h.version_hash
                          FROM continuum_workers w
                          CROSS JOIN LATERAL jsonb_each(w.workflows) AS l (workflow, versions)
                          CROSS JOIN LATERAL jsonb_object_keys(l.versions) AS h (version_hash)
                          WHERE w.state <> 'dead' AND w.state = 'alive' AND w.expires_at > statement_timestamp()
                      )
                  )
              )
              OR r.state = 'stuck_unknown_version' AND NOT EXISTS (
                  SELECT 1 FROM continuum_workers w
                  WHERE (w.state <> 'dead' OR w.stopped_at > statement_timestamp() - make_interval(secs => %(grace)s))
                    AND (w.workflows IS NULL OR w.workflows ? r.workflow)
              )
          )
        ORDER BY r.next_wakeup_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) d
    WHERE p.priority IS NOT NULL
    LIMIT %(limit)s
)
UPDATE continuum_runs r
SET owner_id = lease.id, lease_token = nextval('continuum_lease_token_seq'), state = 'running',
    claimed_at = coalesce(r.claimed_at, statement_timestamp()), next_wakeup_at = NULL
FROM due, lease
WHERE r.id = due.id
RETURNING r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed, r.depth,
    (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
    (extract(epoch FROM r.deadline_at) * 1000000)::bigint, r.continued_from_run_id IS NOT NULL, due.claimed_at IS NULL,
    EXISTS (SELECT 1 FROM continuum_inbox i WHERE i.run_id = r.id AND i.consumed_at IS NULL), r.recoveries
