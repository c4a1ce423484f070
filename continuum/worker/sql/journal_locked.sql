-- Before a commit that must not wait for anybody: which rows of runs does somebody else hold, of those that it is to write to?
-- All others are locked from here to the end of the transaction, in the way the journal's statement will need them. So is the
-- worker's own row; the first column tells if that is what somebody else holds.
--
-- A run that is not this worker's any more is no row to wait for: the journal's statement says that it is lost.
WITH asked AS MATERIALIZED (
    SELECT a.run_id, a.token FROM unnest(%(run_ids)s::uuid[], %(tokens)s::bigint[]) AS a (run_id, token)
), lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w
    WHERE w.id = %(worker)s AND set_config('idle_in_transaction_session_timeout', %(open_for)s, true) IS NOT NULL
    FOR KEY SHARE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT r.id
    FROM asked a JOIN continuum_runs r ON r.id = a.run_id
    WHERE r.lease_token + 0 = a.token AND coalesce(r.owner_id, 0) = %(worker)s
    FOR NO KEY UPDATE OF r SKIP LOCKED
)
SELECT
    EXISTS (SELECT 1 FROM continuum_workers w WHERE w.id = %(worker)s) AND NOT EXISTS (SELECT 1 FROM lease),
    ARRAY(
        SELECT r.id
        FROM asked a JOIN continuum_runs r ON r.id = a.run_id
        WHERE r.lease_token + 0 = a.token AND coalesce(r.owner_id, 0) = %(worker)s
          AND r.id NOT IN (SELECT f.id FROM free f)
    )
