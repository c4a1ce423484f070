-- Takes a limited queue for the length of a transaction; no row: somebody else has it. Whoever claims from the queue counts
-- in a later statement, which sees what the one before has committed.
-- A worker that is stopped in the middle must not keep the queue from the others for long.
SELECT q.recent::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    set_config('idle_in_transaction_session_timeout', '5s', true)
FROM continuum_queues q WHERE q.name = %(queue)s
FOR UPDATE SKIP LOCKED
