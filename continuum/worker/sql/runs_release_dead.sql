-- Frees one batch of the runs of dead nodes. Each gets a new fencing token, so that whatever their last owner still sends
-- is refused, and becomes claimable by anybody.
--
-- The owners must be dead already, and committed as such: from then on nobody but this statement touches these rows' ownership.
-- Survivors share the work through SKIP LOCKED. A run that has ended is only detached.
WITH stranded AS (
    SELECT id
    FROM continuum_runs
    WHERE owner_id = ANY(%(owners)s::bigint[])
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE continuum_runs AS run
SET owner_id = NULL,
    lease_token = nextval('continuum_lease_token_seq'),
    recoveries = CASE WHEN run.state IN ('pending', 'running', 'suspended') THEN least(run.recoveries + 1, 32767) ELSE run.recoveries END,
    next_wakeup_at = CASE WHEN run.state IN ('pending', 'running', 'suspended') THEN clock_timestamp() END,
    state = CASE WHEN run.state IN ('pending', 'running', 'suspended') THEN 'suspended' ELSE run.state END
FROM stranded
WHERE run.id = stranded.id
