-- Before an attempt is reported as failed: from now on only a later one may fill in the record. Returns the result if the
-- attempt has recorded one after all. Waits for a transaction that is about to.
INSERT INTO continuum_activity_results AS known (run_id, command_id, kind, name, attempt)
VALUES (%(run_id)s, %(command_id)s, 'activity', %(name)s, least(%(attempt)s + 1, 32767))
ON CONFLICT (run_id, command_id) DO UPDATE
SET attempt = CASE WHEN known.result IS NULL THEN greatest(known.attempt, EXCLUDED.attempt) ELSE known.attempt END
RETURNING known.result::text
