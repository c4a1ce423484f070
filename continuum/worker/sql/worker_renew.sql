-- Renews a node's lease. Returns no row when the node was declared dead: its runs may be somebody else's by now.
-- No key column changes, so this waits for no journal commit (they hold FOR KEY SHARE on the row) and none waits for it.
UPDATE continuum_workers
SET heartbeat_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
WHERE id = %(worker)s AND state <> 'dead'
RETURNING (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
