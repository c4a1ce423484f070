-- Adds a node. All times are the server's: hosts may disagree about the time, leases must not.
INSERT INTO continuum_workers (name, host, pid, queues, info, workflows, started_at, heartbeat_at, expires_at)
VALUES (
    %(name)s, %(host)s, %(pid)s, %(queues)s::json, %(info)s::json, %(workflows)s::jsonb,
    clock_timestamp(), clock_timestamp(), clock_timestamp() + make_interval(secs => %(ttl)s)
)
RETURNING id, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
