-- Ends the journal's sessions of nodes whose lease ran out and that cannot be declared dead, as a commit of theirs holds their
-- row. Such a commit is not on its way any more: a server that waits for the rows of a COPY waits without a time limit
-- (neither statement_timeout nor idle_in_transaction_session_timeout holds there), and one whose peer has lost its power, or
-- is stopped, would do so for hours. Whose lease ran out may write nothing, so that nothing is lost with the session.
SELECT worker.id, pg_terminate_backend(session.pid)
FROM continuum_workers AS worker
JOIN pg_stat_activity AS session ON session.application_name = %(prefix)s || worker.id
WHERE worker.id = ANY(%(workers)s::bigint[])
  AND worker.state <> 'dead'
  AND worker.expires_at < clock_timestamp()
  AND session.datname = current_database()
  AND session.state <> 'idle'
  AND session.state_change < clock_timestamp() - interval '1 second'
  AND pg_has_role(session.usesysid, 'USAGE')
