-- The record of an attempt that was claimed from a queue, the message to its run, and the end of its task, in the
-- transaction that holds what the attempt wrote. The task's row is the lease: who deletes it under its own token is the one.
-- "unfenced" passes over a fence that an earlier claimer of the task has left.
WITH held AS (
    DELETE FROM continuum_activity_tasks t
    WHERE t.run_id = %(run_id)s AND t.command_id = %(command_id)s
      AND t.state = 'running' AND t.lease_token = %(token)s AND t.owner_id = %(worker)s
    RETURNING t.run_id
), recorded AS (
    INSERT INTO continuum_activity_results AS known (run_id, command_id, kind, name, attempt, result)
    SELECT held.run_id, %(command_id)s, 'activity', %(name)s, %(attempt)s, %(result)s::json
    FROM held
    ON CONFLICT (run_id, command_id) DO UPDATE
    SET attempt = EXCLUDED.attempt, result = EXCLUDED.result, created_at = clock_timestamp()
    WHERE known.result IS NULL AND (known.attempt <= EXCLUDED.attempt OR %(unfenced)s)
    RETURNING run_id
), message AS (
    INSERT INTO continuum_inbox (run_id, kind, name, command_id, payload)
    SELECT run_id, 'activity', %(name)s, %(command_id)s, %(payload)s::json FROM recorded
    RETURNING id
)
SELECT
    set_config('idle_in_transaction_session_timeout', %(open_for)s, true),
    EXISTS (SELECT 1 FROM held),
    (SELECT id FROM message),
    (SELECT r.owner_id FROM continuum_runs r WHERE r.id = %(run_id)s)
