-- Who asks, who owns the history, and whether who asks may make a partition of it: that takes the rights of its owner, and
-- a place to put a table.
SELECT
    current_user::text,
    pg_get_userbyid(parent.relowner)::text,
    pg_has_role(parent.relowner, 'USAGE') AND has_schema_privilege(parent.relnamespace, 'CREATE')
FROM pg_catalog.pg_class AS parent
WHERE parent.oid = 'continuum_events'::regclass
