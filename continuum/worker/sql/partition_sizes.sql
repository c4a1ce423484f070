-- How big the partitions of the history are: the estimate of rows that VACUUM and ANALYZE leave, -1 before the first.
SELECT child.relname, child.reltuples::bigint, pg_total_relation_size(child.oid)
  FROM pg_catalog.pg_inherits AS link
  JOIN pg_catalog.pg_class AS child ON child.oid = link.inhrelid
 WHERE link.inhparent = 'continuum_events'::regclass
