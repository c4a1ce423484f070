-- Tries to take the advisory lock that says "this node's process is alive": the server drops it with the session.
-- Tried, not waited for: a session of ours that the server has not buried yet may still hold it, and hints must be heard meanwhile.
SELECT pg_try_advisory_lock(%(lock_class)s::integer, %(worker)s::integer)
