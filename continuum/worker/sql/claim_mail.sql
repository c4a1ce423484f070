-- Claim runs that nobody owns and for which a message lies in the inbox. Whatever the sender's hint came to, and however its
-- commit raced with a release: a run with an unread message is claimable as long as both stand there.
-- A run that has not begun is woken by a request to cancel only: signals wait for its start. So is one that is parked: should
-- its code still not replay its history, it ends without.
-- A suspended run with an error is one that is left alone for a while: the mail it could not take up must not have it tried
-- again and again meanwhile. Only a request to cancel that it has not seen is worth another try at once.
-- Which worker may take it: as in claim_due.
WITH lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state = 'alive' FOR KEY SHARE
), mail AS MATERIALIZED (
    SELECT r.id, r.claimed_at FROM continuum_runs r
    WHERE r.id IN (SELECT i.run_id FROM continuum_inbox i WHERE i.consumed_at IS NULL)
      AND r.owner_id IS NULL
      AND r.recoveries < %(suspected)s -- the others have their time to wake up, and are claimed by claim_suspects
      AND (
          r.workflow = ANY(%(workflows)s) AND (
              r.version_hash = ANY(%(hashes)s)
              OR r.state = 'stuck_unknown_version'
              OR NOT %(pinned)s AND (
                  EXISTS (
                      SELECT 1 FROM continuum_inbox i
                      WHERE i.run_id = r.id AND i.consumed_at IS NULL
                        AND i.created_at <= statement_timestamp() - make_interval(secs => %(patience)s)
                  )
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
      AND (
          r.state = 'suspended' AND (
              r.error IS NULL OR r.next_wakeup_at IS NULL OR r.next_wakeup_at <= statement_timestamp() OR EXISTS (
                  SELECT 1 FROM continuum_inbox i
                  WHERE i.run_id = r.id AND i.consumed_at IS NULL AND i.kind = 'cancel'
                    AND i.id > coalesce((r.error -> 'details' ->> 'last_message')::bigint, 0)
              )
          )
          OR r.state IN ('pending', 'stuck_unknown_version') AND EXISTS (
              SELECT 1 FROM continuum_inbox i WHERE i.run_id = r.id AND i.consumed_at IS NULL AND i.kind = 'cancel'
          )
      )
    LIMIT %(limit)s
    FOR UPDATE OF r SKIP LOCKED
)
UPDATE continuum_runs r
SET owner_id = lease.id, lease_token = nextval('continuum_lease_token_seq'), state = 'running',
    claimed_at = coalesce(r.claimed_at, statement_timestamp()), next_wakeup_at = NULL
FROM mail, lease
WHERE r.id = mail.id
RETURNING r.id, r.lease_token, r.workflow, r.version, r.version_hash, r.namespace, r.input::text, r.parent_run_id, r.seed, r.depth,
    (extract(epoch FROM r.started_at) * 1000000)::bigint, (extract(epoch FROM r.claimed_at) * 1000000)::bigint,
    (extract(epoch FROM r.deadline_at) * 1000000)::bigint, r.continued_from_run_id IS NOT NULL, mail.claimed_at IS NULL, true,
    r.recoveries
