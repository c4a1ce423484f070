-- Ends sessions that still hold a node's lock: of connections that have broken for the node, and not yet for the server, which
-- may take hours to notice. The lock would be gone with them at some moment, and for the others the node with it.
SELECT count(pg_terminate_backend(session.pid))
FROM pg_stat_activity AS session
JOIN pg_locks AS held ON held.pid = session.pid
WHERE held.locktype = 'advisory'
  AND held.classid = %(lock_class)s::bigint::oid
  AND held.objid = %(worker)s::bigint::oid
  AND held.objsubid = 2
  AND held.granted
  AND session.application_name = %(name)s
  AND session.datname = current_database()
  AND session.pid <> pg_backend_pid()
  AND pg_has_role(session.usesysid, 'USAGE')
