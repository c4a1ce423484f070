-- Ends runs in runs that go on in their place, each with the same standing and a fresh history, and takes the mail along.
--
-- Unread messages keep their numbers, and so their order, also towards those that come late and are forwarded (see
-- mail_forward.sql). Signals that the old run had taken in, and nobody asked for, came before all of these: they get numbers
-- below the lowest. What answers commands of the old run means nothing to the new one and is dropped.
-- No wait for anybody: the runs are this worker's, and locked by the journal's statement; their unread mail is touched by
-- nobody else before they are seen to have ended. A successor that is there already has had its mail.
WITH given AS MATERIALIZED (
    SELECT g.old, g.new, g.version, g.version_hash, g.input
    FROM unnest(
        %(olds)s::uuid[], %(news)s::uuid[], %(versions)s::integer[], %(hashes)s::text[], %(inputs)s::json[]
    ) AS g (old, new, version, version_hash, input)
), linked AS (
    UPDATE continuum_runs r SET continued_to_run_id = g.new FROM given g WHERE r.id = g.old
), begun AS (
    INSERT INTO continuum_runs (
        id, correlation_id, workflow, version, version_hash, namespace, attributes, priority, input,
        parent_run_id, parent_command_id, depth, deadline_at, continued_from_run_id, started_at, next_wakeup_at
    )
    SELECT
        g.new, r.correlation_id, r.workflow, g.version, g.version_hash, r.namespace, r.attributes, r.priority, g.input,
        r.parent_run_id, r.parent_command_id, r.depth, r.deadline_at, r.id,
        -- The end of the old run was read from its worker's clock, which may be a little ahead.
        greatest(r.completed_at, statement_timestamp()), statement_timestamp()
    FROM given g JOIN continuum_runs r ON r.id = g.old
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), taken AS (
    DELETE FROM continuum_inbox i
    USING given g
    WHERE i.run_id = g.old AND i.consumed_at IS NULL
    RETURNING g.new, i.id, i.kind, i.name, i.payload, i.delivery_id, i.created_at
), lowest AS (
    SELECT t.new, min(t.id) AS id FROM taken t GROUP BY t.new
)
INSERT INTO continuum_inbox (run_id, id, kind, name, payload, delivery_id, created_at)
SELECT t.new, t.id, t.kind, t.name, t.payload, t.delivery_id, t.created_at
FROM taken t
WHERE t.kind IN ('signal', 'cancel')
UNION ALL
SELECT b.id, least(0, (SELECT l.id FROM lowest l WHERE l.new = b.id)) + s.place, 'signal', s.name, s.payload, NULL,
    statement_timestamp()
FROM unnest(
    %(signal_runs)s::uuid[], %(signal_places)s::bigint[], %(signal_names)s::text[], %(signals)s::json[]
) AS s (run_id, place, name, payload)
JOIN begun b ON b.id = s.run_id
