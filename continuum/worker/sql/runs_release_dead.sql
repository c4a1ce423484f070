-- Frees one batch of the runs of dead nodes. Each gets a new fencing token, so that whatever their last owner still sends
-- is refused, and becomes claimable by anybody.
--
-- The owners must be dead already, and committed as such: from then on nobody but this statement touches these rows' ownership.
-- Survivors share the work through SKIP LOCKED. A run that has ended is only detached.
--
-- "recoveries" counts the deaths a run may be to blame for: of those it was at work in ('running': claimed and not quiet
-- since, or with an activity under way). If the dead node had suspects on trial (those it had claimed with "trial_token" or
-- a later token), these are blamed, and other suspects, which have been tried, are not. Nobody but a run that was on trial alone
-- ("suspect_id") gets the last of its chances taken ("spared").
--
-- What was at work goes on before what has not begun: it is put beside the first in line, however long the line is.
--
-- Workers of before migration 0009 try one at a time and know no "trial_token".
WITH stranded AS (
    SELECT run.id, worker.suspect_id, worker.trial_token
    FROM continuum_runs AS run
    LEFT JOIN continuum_workers AS worker ON worker.id = run.owner_id
    WHERE run.owner_id = ANY(%(owners)s::bigint[])
    LIMIT %(batch)s
    FOR NO KEY UPDATE OF run SKIP LOCKED
)
UPDATE continuum_runs AS run
SET owner_id = NULL,
    lease_token = nextval('continuum_lease_token_seq'),
    recoveries = CASE
        WHEN run.state <> 'running' THEN run.recoveries
        WHEN run.recoveries < %(suspected)s OR run.id = stranded.suspect_id THEN least(run.recoveries + 1, 32767)
        WHEN run.lease_token >= stranded.trial_token OR stranded.trial_token IS NULL AND stranded.suspect_id IS NULL
            THEN greatest(run.recoveries, least(run.recoveries + 1, %(spared)s))
        ELSE run.recoveries
    END,
    next_wakeup_at = CASE
        WHEN run.state = 'running' THEN least(clock_timestamp(), (
            SELECT first.next_wakeup_at FROM continuum_runs AS first
            WHERE first.owner_id IS NULL AND first.next_wakeup_at IS NOT NULL AND first.priority = run.priority
            ORDER BY first.next_wakeup_at
            LIMIT 1
        ))
        WHEN run.state IN ('pending', 'suspended') THEN clock_timestamp()
    END,
    state = CASE WHEN run.state IN ('pending', 'running', 'suspended') THEN 'suspended' ELSE run.state END
FROM stranded
WHERE run.id = stranded.id
