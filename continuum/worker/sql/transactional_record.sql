-- The record of an attempt that the run's owner made, and the message to the run, in the transaction that holds what the
-- attempt wrote. Commits follow at once.
--
-- The lease is checked and locked as in the journal: from here to the commit this worker cannot be declared dead, and so
-- nobody else can take the run. Should we be cut off right here, the server gives up after "open_for".
-- No row is written unless the run is held. "unfenced" passes over a fence that an earlier owner of the run has left.
WITH lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w WHERE w.id = %(worker)s AND w.state <> 'dead' FOR KEY SHARE
), held AS MATERIALIZED (
    SELECT r.id, r.owner_id
    FROM continuum_runs r, lease
    WHERE r.id = %(run_id)s AND r.lease_token + 0 = %(token)s AND coalesce(r.owner_id, 0) = lease.id
), recorded AS (
    INSERT INTO continuum_activity_results AS known (run_id, command_id, kind, name, attempt, result)
    SELECT held.id, %(command_id)s, 'activity', %(name)s, %(attempt)s, %(result)s::json
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
    (SELECT owner_id FROM held)
