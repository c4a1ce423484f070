-- Which of these sessions are at what they were asked for last, or may be: it is not shown to everybody. One that waits for its
-- client, in the middle of a COPY too, is not, nor is one that is gone.
SELECT session.pid
FROM pg_stat_activity AS session
WHERE session.pid = ANY(%(pids)s::integer[])
  AND coalesce(session.state NOT LIKE 'idle%%', true)
  AND session.wait_event IS DISTINCT FROM 'ClientRead'
