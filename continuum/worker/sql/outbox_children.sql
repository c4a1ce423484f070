-- Starts children, as many as there are, with what they inherit from their parents. Their ids follow from the commands:
-- those that are there already (the parent's code asked before, and its worker died) are left as they are.
INSERT INTO continuum_runs (
    id, correlation_id, workflow, version, version_hash, namespace, attributes, priority, input,
    parent_run_id, parent_command_id, depth, started_at, next_wakeup_at
)
SELECT
    c.id, p.correlation_id, c.workflow, c.version, c.version_hash, coalesce(c.namespace, p.namespace),
    coalesce(c.attributes, p.attributes), p.priority, c.input,
    p.id, c.command_id, p.depth + 1, statement_timestamp(), statement_timestamp()
FROM unnest(
    %(parents)s::uuid[], %(ids)s::uuid[], %(commands)s::text[], %(workflows)s::text[], %(versions)s::integer[],
    %(hashes)s::text[], %(inputs)s::json[], %(namespaces)s::text[], %(attributes)s::jsonb[]
) AS c (parent, id, command_id, workflow, version, version_hash, input, namespace, attributes)
JOIN continuum_runs p ON p.id = c.parent
ON CONFLICT (id) DO NOTHING
RETURNING id
