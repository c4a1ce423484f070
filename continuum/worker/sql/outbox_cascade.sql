-- Asks every child of some runs that has not ended to stop. Those that were continued are no trouble: a successor has the
-- same parent. One that has been asked, and does not know yet, needs no second request: should it go on as another run, that
-- would take it for one of its own.
WITH told AS MATERIALIZED (
    SELECT r.id, r.owner_id, p.payload, 'cancelled with ' || p.id AS delivery_id
    FROM unnest(%(parents)s::uuid[], %(payloads)s::json[]) AS p (id, payload)
    JOIN continuum_runs r ON r.parent_run_id = p.id
    WHERE r.state NOT IN ('completed', 'failed', 'cancelled')
      AND NOT EXISTS (
          SELECT 1 FROM continuum_inbox i WHERE i.run_id = r.id AND i.consumed_at IS NULL AND i.kind = 'cancel'
      )
), sent AS (
    INSERT INTO continuum_inbox (run_id, kind, payload, delivery_id)
    SELECT t.id, 'cancel', t.payload, t.delivery_id FROM told t
    ON CONFLICT (run_id, delivery_id) WHERE delivery_id IS NOT NULL DO NOTHING
)
SELECT t.id, t.owner_id FROM told t
