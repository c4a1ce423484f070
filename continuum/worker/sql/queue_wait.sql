-- As queue_lock, but waits for its turn.
SELECT q.recent::text, set_config('idle_in_transaction_session_timeout', '5s', true)
FROM continuum_queues q WHERE q.name = %(queue)s
FOR UPDATE
