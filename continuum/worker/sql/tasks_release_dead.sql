-- Frees one batch of the tasks dead workers were at: whatever those still send is refused, and anybody may claim them.
-- The owners must be dead already, and committed as such. A row that only keeps heartbeats is detached.
WITH stranded AS (
    SELECT run_id, command_id
    FROM continuum_activity_tasks
    WHERE owner_id = ANY(%(owners)s::bigint[])
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
)
UPDATE continuum_activity_tasks AS task
SET owner_id = NULL,
    lease_token = nextval('continuum_lease_token_seq'),
    recoveries = CASE WHEN task.state = 'running' THEN least(task.recoveries + 1, 32767) ELSE task.recoveries END,
    claimed_at = NULL,
    state = CASE WHEN task.state = 'running' THEN 'ready' ELSE task.state END
FROM stranded
WHERE task.run_id = stranded.run_id AND task.command_id = stranded.command_id
