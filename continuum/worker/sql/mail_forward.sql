-- Brings signals and requests to cancel from the inboxes of continued runs to the tips of their chains, under the numbers they
-- had. A tip that is continued at this moment is no trouble: the next round takes them further. Answers to activities of runs
-- that have ended are dropped; what concerns children is left to mail_forward_children.sql.
--
-- The unique index on deliveries may have this wait for the transaction of somebody who sends the same delivery to the tip:
-- not for long, the worker has other things to do.
WITH RECURSIVE patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', '100ms', true) AS setting
), chain AS (
    SELECT r.id AS first, r.id, r.owner_id, r.continued_to_run_id, 0 AS depth
    FROM patience, unnest(%(run_ids)s::uuid[]) AS g (id)
    JOIN continuum_runs r ON r.id = g.id AND r.continued_to_run_id IS NOT NULL
    WHERE patience.setting IS NOT NULL
    UNION ALL
    SELECT c.first, r.id, r.owner_id, r.continued_to_run_id, c.depth + 1
    FROM chain c JOIN continuum_runs r ON r.id = c.continued_to_run_id
    WHERE c.depth < 100000
), tip AS MATERIALIZED (
    SELECT DISTINCT ON (c.first) c.first, c.id, c.owner_id, c.depth FROM chain c ORDER BY c.first, c.depth DESC
), stray AS MATERIALIZED (
    SELECT i.run_id, i.id, t.id AS tip, t.owner_id
    FROM tip t JOIN continuum_inbox i ON i.run_id = t.first
    WHERE i.consumed_at IS NULL AND i.kind <> 'child'
    FOR UPDATE OF i SKIP LOCKED
), taken AS (
    DELETE FROM continuum_inbox i
    USING stray s
    WHERE i.run_id = s.run_id AND i.id = s.id
    RETURNING s.tip, s.owner_id, i.run_id, i.id, i.kind, i.name, i.payload, i.delivery_id, i.created_at
), brought AS (
    INSERT INTO continuum_inbox (run_id, id, kind, name, payload, delivery_id, created_at)
    SELECT t.tip, t.id, t.kind, t.name, t.payload, t.delivery_id, t.created_at
    FROM taken t
    WHERE t.kind IN ('signal', 'cancel') AND t.tip <> t.run_id
    ON CONFLICT DO NOTHING
    RETURNING run_id
)
SELECT DISTINCT t.tip, t.owner_id FROM taken t JOIN brought b ON b.run_id = t.tip
