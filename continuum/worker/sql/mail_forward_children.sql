-- Clears what continued runs are told about children. Most are outcomes, which nobody waits for any more. But a child that has
-- not ended, and still is the old run's, could not be moved when that was continued (see outbox_adopt.sql): it goes to the
-- tip of the chain now; if its row is held by somebody, at a later round. If the tip was asked to stop meanwhile, so is the
-- child.
WITH RECURSIVE chain AS (
    SELECT r.id AS first, r.id, r.continued_to_run_id, 0 AS depth
    FROM unnest(%(run_ids)s::uuid[]) AS g (id)
    JOIN continuum_runs r ON r.id = g.id AND r.continued_to_run_id IS NOT NULL
    UNION ALL
    SELECT c.first, r.id, r.continued_to_run_id, c.depth + 1
    FROM chain c JOIN continuum_runs r ON r.id = c.continued_to_run_id
    WHERE c.depth < 100000
), tip AS MATERIALIZED (
    SELECT DISTINCT ON (c.first) c.first, c.id FROM chain c ORDER BY c.first, c.depth DESC
), stray AS MATERIALIZED (
    SELECT i.run_id, i.id, t.id AS tip, (i.payload ->> 'child')::uuid AS child
    FROM tip t JOIN continuum_inbox i ON i.run_id = t.first
    WHERE i.consumed_at IS NULL AND i.kind = 'child'
    FOR UPDATE OF i SKIP LOCKED
), line AS (
    SELECT s.run_id, s.id AS message, s.tip, r.id, r.parent_run_id, r.state, r.continued_to_run_id, 0 AS depth
    FROM stray s JOIN continuum_runs r ON r.id = s.child
    UNION ALL
    SELECT l.run_id, l.message, l.tip, r.id, r.parent_run_id, r.state, r.continued_to_run_id, l.depth + 1
    FROM line l JOIN continuum_runs r ON r.id = l.continued_to_run_id
    WHERE l.depth < 100000
), left_behind AS MATERIALIZED (
    SELECT l.message, l.run_id, l.tip, l.id
    FROM (
        SELECT DISTINCT ON (line.message) line.* FROM line ORDER BY line.message, line.depth DESC
    ) l
    WHERE l.parent_run_id = l.run_id AND l.tip <> l.run_id AND l.state NOT IN ('completed', 'failed', 'cancelled')
), held AS MATERIALIZED (
    SELECT b.message, b.tip, r.id
    FROM left_behind b JOIN continuum_runs r ON r.id = b.id
    WHERE r.parent_run_id = b.run_id AND r.state NOT IN ('completed', 'failed', 'cancelled')
    FOR NO KEY UPDATE OF r SKIP LOCKED
), moved AS (
    UPDATE continuum_runs r
    SET parent_run_id = h.tip, parent_command_id = NULL
    FROM held h
    WHERE r.id = h.id
    RETURNING r.id, r.owner_id, h.tip
), cleared AS (
    DELETE FROM continuum_inbox i
    USING stray s
    WHERE i.run_id = s.run_id AND i.id = s.id
      AND (
          s.id NOT IN (SELECT b.message FROM left_behind b)
          OR s.id IN (SELECT h.message FROM held h)
      )
), told AS MATERIALIZED (
    SELECT m.id, m.owner_id, m.tip, e.data
    FROM moved m
    CROSS JOIN LATERAL (
        SELECT e.data FROM continuum_events e
        WHERE e.run_id = m.tip AND e.type = 'cancel_requested'
        ORDER BY e.seq
        LIMIT 1
    ) e
), sent AS (
    INSERT INTO continuum_inbox (run_id, kind, payload, delivery_id)
    SELECT t.id, 'cancel', json_build_object('reason', t.data -> 'reason'), 'cancelled with ' || t.tip FROM told t
    ON CONFLICT (run_id, delivery_id) WHERE delivery_id IS NOT NULL DO NOTHING
)
SELECT t.id, t.owner_id FROM told t
