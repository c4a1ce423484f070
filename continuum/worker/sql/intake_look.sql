-- Would any of the statements find something that a poll would otherwise run one after the other? Each answer may be "yes" for
-- nothing (a run of other code, mail that nobody may take yet), but never "no" for something.
--
-- In the order of an index each, and not EXISTS: planned once, that would read all there is of a kind.
-- due: claim_due, with the same walk from priority to priority. mail: claim_mail, inbox_of_worker, mail_strays.
-- suspects: claim_suspects, which also takes back what this worker's row says of a trial that is over. parked: claim_parked.
WITH RECURSIVE priorities (priority) AS (
    (SELECT r.priority FROM continuum_runs r WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL
     ORDER BY r.priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT r.priority FROM continuum_runs r
            WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL AND r.priority < p.priority
            ORDER BY r.priority DESC LIMIT 1)
    FROM priorities p WHERE p.priority IS NOT NULL
)
SELECT
    EXISTS (
        SELECT 1 FROM priorities p
        CROSS JOIN LATERAL (
            SELECT 1 FROM continuum_runs r
            WHERE r.owner_id IS NULL AND r.next_wakeup_at IS NOT NULL AND r.priority = p.priority
              AND r.next_wakeup_at <= statement_timestamp()
            ORDER BY r.next_wakeup_at
            LIMIT 1
        ) d
        WHERE p.priority IS NOT NULL
    ) AS due,
    coalesce((SELECT true FROM continuum_inbox i WHERE i.consumed_at IS NULL ORDER BY i.run_id LIMIT 1), false) AS mail,
    coalesce(
        (SELECT true FROM continuum_runs r WHERE r.owner_id IS NULL AND r.recoveries > 0 ORDER BY r.recoveries DESC LIMIT 1),
        (SELECT w.suspect_id IS NOT NULL OR w.trial_token IS NOT NULL FROM continuum_workers w WHERE w.id = %(worker)s),
        false
    ) AS suspects,
    coalesce(
        (SELECT true FROM continuum_runs r WHERE r.owner_id IS NULL AND r.state = 'stuck_unknown_version'
         ORDER BY r.workflow LIMIT 1),
        false
    ) AS parked
