-- What the server says of itself, of its clock, and of what this role may do with our tables, as far as they are there.
--
-- JSON as text: projects may have told psycopg how to read theirs.
SELECT
    (SELECT json_object_agg(s.name, s.reset_val)::text FROM pg_catalog.pg_settings s WHERE s.name = ANY(%(settings)s)),
    pg_is_in_recovery(),
    extract(epoch FROM clock_timestamp())::float8,
    quote_ident(current_user),
    (
        SELECT coalesce(array_agg(c.relname::text ORDER BY c.relname), '{}')
        FROM pg_catalog.pg_class c
        WHERE c.relname = ANY(%(tables)s) AND pg_table_is_visible(c.oid) AND c.relkind IN ('r', 'p', 'S')
          AND NOT CASE
              WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'USAGE')
              ELSE has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                  AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')
          END
    )
