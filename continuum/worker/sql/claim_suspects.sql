-- Claim the group of runs that is suspected most of killing its workers, and say so in the worker's row in the same
-- transaction: if this worker dies now, these are blamed for it. Without a suspect the row is cleared.
--
-- Those that lost most workers go first, and with no others: the sooner the culprit is found, the fewer innocents it takes
-- with it. How many are tried together follows from how many workers they have lost ("sizes", from the first trial on, then
-- alone); at their last chance ("spared") each is alone. Those that have had it fail without their code being run.
-- "foremost" holds one of them, so that of several workers that try at once each finds a group of its own.
-- What is on trial is told by its fencing tokens, which only grow: they are drawn here, and so are later than those of all
-- suspects that this worker has tried before. A run that is on trial alone is named as well ("suspect_id").
-- One that is left alone for a while is tried sooner for a request to cancel that it has not seen, as in claim_mail.
-- Found by continuum_runs_suspects_idx, which is empty on a good day.
WITH lease AS MATERIALIZED (
    SELECT w.id, w.suspect_id, w.trial_token
    FROM continuum_workers w WHERE w.id = %(worker)s AND w.state = 'alive' FOR NO KEY UPDATE
), foremost AS MATERIALIZED (
    SELECT r.recoveries
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
), suspects AS MATERIALIZED (
    SELECT r.id, r.claimed_at
    FROM continuum_runs r
    WHERE r.owner_id IS NULL AND r.recoveries > 0 AND r.recoveries = (SELECT foremost.recoveries FROM foremost)
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
    LIMIT (
        SELECT CASE
            WHEN foremost.recoveries > %(spared)s THEN %(limit)s
            WHEN foremost.recoveries = %(spared)s THEN 1
            ELSE least(%(limit)s, coalesce((%(sizes)s::integer[])[1 + foremost.recoveries - %(suspected)s], 1))
        END
        FROM foremost
    )
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE continuum_runs r
    SET owner_id = lease.id, lease_token = nextval('continuum_lease_token_seq'), state = 'running',
        claimed_at = coalesce(r.claimed_at, statement_timestamp()), next_wakeup_at = NULL
    FROM suspects, lease
    WHERE r.id = suspects.id
    RETURNING r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed,
        r.depth, (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
        (extract(epoch FROM r.deadline_at) * 1000000)::bigint, r.continued_from_run_id IS NOT NULL, suspects.claimed_at IS NULL,
        true, r.recoveries
), trial AS (
    SELECT min(c.lease_token) AS token, CASE WHEN count(*) = 1 THEN (array_agg(c.id))[1] END AS alone FROM claimed c
), noted AS (
    UPDATE continuum_workers w
    SET suspect_id = trial.alone, trial_token = trial.token
    FROM lease, trial
    WHERE w.id = lease.id AND (lease.suspect_id, lease.trial_token) IS DISTINCT FROM (trial.alone, trial.token)
)
SELECT * FROM claimed
