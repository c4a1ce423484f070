-- Asks runs to stop: each at the tip of its chain, unless that has ended or the chain has had this very request before.
-- Reads without a lock, as client_send.sql does: a request that reaches a run just as it is continued is forwarded, one that
-- reaches a run just as it ends means nothing.
-- Not EXISTS for what is known: planned for many requests, that would read every delivery there ever was.
WITH RECURSIVE chain AS (
    SELECT
        a.place, a.payload, a.delivery_id, r.id, r.state, r.owner_id, r.continued_to_run_id, 0 AS depth,
        (SELECT true FROM continuum_inbox i WHERE i.run_id = r.id AND i.delivery_id = a.delivery_id) IS TRUE AS known
    FROM unnest(%(run_ids)s::uuid[], %(payloads)s::json[], %(deliveries)s::text[])
        WITH ORDINALITY AS a (run_id, payload, delivery_id, place)
    JOIN continuum_runs r ON r.id = a.run_id
    UNION ALL
    SELECT
        c.place, c.payload, c.delivery_id, r.id, r.state, r.owner_id, r.continued_to_run_id, c.depth + 1,
        c.known OR (SELECT true FROM continuum_inbox i WHERE i.run_id = r.id AND i.delivery_id = c.delivery_id) IS TRUE
    FROM chain c JOIN continuum_runs r ON r.id = c.continued_to_run_id
    WHERE c.depth < 100000
), tip AS (
    SELECT DISTINCT ON (c.place) c.place, c.payload, c.delivery_id, c.id, c.state, c.owner_id, c.known
    FROM chain c
    ORDER BY c.place, c.depth DESC
), told AS MATERIALIZED (
    SELECT t.id, t.owner_id, t.payload, t.delivery_id
    FROM tip t
    WHERE t.state NOT IN ('completed', 'failed', 'cancelled') AND NOT t.known
), sent AS (
    INSERT INTO continuum_inbox (run_id, kind, payload, delivery_id)
    SELECT t.id, 'cancel', t.payload, t.delivery_id FROM told t
    ON CONFLICT (run_id, delivery_id) WHERE delivery_id IS NOT NULL DO NOTHING
)
SELECT t.id, t.owner_id FROM told t
