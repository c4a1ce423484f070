-- The runs that can still go on, counted by what an audit tells apart: which code they are recorded with, whether anybody has
-- begun them, and, for workflows with patches, what their histories say about code: "p<name>" for a decision on a patch,
-- "v<from> <to>" for a change of version. Three run ids stand for each group.
--
-- Ended runs, of which there are millions, are never walked over: "namespaces" skips along continuum_runs_namespace_state_idx
-- from one namespace to the next, and each is read for the few states only. Of a history only the rare events are read that
-- continuum_events_versions_idx holds.
WITH RECURSIVE namespaces (namespace) AS (
    (SELECT r.namespace FROM continuum_runs r ORDER BY r.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT r.namespace FROM continuum_runs r WHERE r.namespace > n.namespace ORDER BY r.namespace LIMIT 1)
    FROM namespaces n WHERE n.namespace IS NOT NULL
), active AS (
    SELECT
        r.id, r.workflow, r.version, r.version_hash, r.state,
        r.claimed_at IS NOT NULL AS begun, r.forked_from_run_id IS NOT NULL AS forked,
        CASE WHEN r.claimed_at IS NOT NULL AND r.workflow = ANY(%(patched)s::text[]) THEN ARRAY(
            SELECT
                CASE e.type
                    WHEN 'patched' THEN 'p' || e.name
                    ELSE 'v' || (e.data ->> 'from') || ' ' || (e.data ->> 'to')
                END
            FROM continuum_events e
            WHERE e.run_id = r.id AND e.type IN ('patched', 'version_adopted')
              AND (e.type <> 'patched' OR e.name = ANY(%(names)s::text[]))
        ) END AS marks
    FROM namespaces n
    JOIN continuum_runs r
        ON r.namespace = n.namespace AND r.state IN ('pending', 'running', 'suspended', 'stuck_unknown_version')
)
SELECT a.workflow, a.version, a.version_hash, a.state, a.begun, a.forked, a.marks, count(*), (array_agg(a.id))[:3]
FROM active a
GROUP BY 1, 2, 3, 4, 5, 6, 7
