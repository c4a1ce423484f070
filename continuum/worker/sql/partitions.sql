-- The partitions of the history table, the default one among them.
SELECT child.relname
  FROM pg_catalog.pg_inherits AS link
  JOIN pg_catalog.pg_class AS child ON child.oid = link.inhrelid
 WHERE link.inhparent = 'continuum_events'::regclass
