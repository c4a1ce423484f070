-- Claim the one run that is suspected most of killing its workers, and say so in the worker's row in the same transaction:
-- if this worker dies now, that run is blamed for it. Without a suspect the row is cleared.
--
-- Those that lost most workers go first: the sooner the culprit is found, the fewer innocents it takes with it.
-- One that is left alone for a while is tried sooner for a request to cancel that it has not seen, as in claim_mail.
-- Found by continuum_runs_suspects_idx, which is empty on a good day.
WITH lease AS MATERIALIZED (
    SELECT w.id, w.suspect_id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state = 'alive' FOR NO KEY UPDATE
), suspect AS MATERIALIZED (
    SELECT r.id, r.claimed_at
    FROM continuum_runs r
    WHERE r.owner_id IS NULL AND r.recoveries > 0 AND r.recoveries >= %(suspected)s
      AND (
          r.next_wakeup_at <= statement_timestamp()
          OR r.state = 'suspended' AND r.error IS NOT NULL AND EXISTS (
              SELECT 1 FROM continuum_inbox i
              WHERE i.run_id = r.id AND i.consumed_at IS NULL AND i.kind = 'cancel'
                AND i.id > coalesce((r.error -> 'details' ->> 'last_message')::bigint, 0)
          )
      )
      AND r.state IN ('pending', 'suspended') AND r.workflow = ANY(%(workflows)s)
      AND (NOT %(pinned)s OR r.version_hash = ANY(%(hashes)s))
      AND EXISTS (SELECT 1 FROM lease)
    ORDER BY r.recoveries DESC
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), noted AS (
    UPDATE continuum_workers w
    SET suspect_id = (SELECT suspect.id FROM suspect)
    FROM lease
    WHERE w.id = lease.id AND lease.suspect_id IS DISTINCT FROM (SELECT suspect.id FROM suspect)
)
UPDATE continuum_runs r
SET owner_id = lease.id, lease_token = nextval('continuum_lease_token_seq'), state = 'running',
    claimed_at = coalesce(r.claimed_at, statement_timestamp()), next_wakeup_at = NULL
FROM suspect, lease
WHERE r.id = suspect.id
RETURNING r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed, r.depth,
    (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
    (extract(epoch FROM r.deadline_at) * 1000000)::bigint, r.continued_from_run_id IS NOT NULL, suspect.claimed_at IS NULL, true,
    r.recoveries
