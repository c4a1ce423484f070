-- Which other nodes look dead? Takes no locks: in nearly every sweep the answer is "none".
--
-- A node is dead when its lease ran out, or when the lock its process held is gone. Gone locks mean nothing right after
-- a restart of the server, which takes everybody's: nodes that were there before it get time to take theirs again.
-- The two-key form of an advisory lock shows its keys as classid and objid, with objsubid 2.
SELECT worker.id, worker.expires_at < clock_timestamp() AS expired
FROM continuum_workers AS worker
WHERE worker.state <> 'dead'
  AND worker.id <> %(me)s
  AND (
      worker.expires_at < clock_timestamp()
      OR (
          worker.session_lock
          AND (
              worker.started_at > pg_postmaster_start_time()
              OR pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => %(grace)s)
          )
          AND NOT EXISTS (
              SELECT
              FROM pg_locks AS held
              WHERE held.locktype = 'advisory'
                AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND held.classid = %(lock_class)s::bigint::oid
                AND held.objid = worker.id::oid
                AND held.objsubid = 2
                AND held.granted
          )
      )
  )
ORDER BY worker.id
