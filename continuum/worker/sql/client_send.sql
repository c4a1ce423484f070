-- Puts a message (a signal, or the request to cancel) into a run's inbox, and tells where to send the hint.
-- It takes no lock on the run: the row in the inbox alone makes the run claimable, so nothing can be lost between the
-- two, and a caller's long transaction never holds up the worker that owns the run.
-- Runs that were continued form a chain; the message goes to its tip. A delivery is a repeat if any run of the chain
-- has had it, and the unique index decides between two that arrive at the same time.
WITH RECURSIVE chain AS (
    SELECT id, state, owner_id, continued_to_run_id, 0 AS depth
    FROM continuum_runs
    WHERE id = %(run_id)s AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
    UNION ALL
    SELECT run.id, run.state, run.owner_id, run.continued_to_run_id, chain.depth + 1
    FROM chain JOIN continuum_runs AS run ON run.id = chain.continued_to_run_id
    WHERE chain.depth < 100000
),
tip AS (
    SELECT id, state, owner_id FROM chain ORDER BY depth DESC LIMIT 1
),
repeated AS (
    SELECT 1
    FROM chain JOIN continuum_inbox AS message ON message.run_id = chain.id
    WHERE message.delivery_id = %(delivery_id)s
    LIMIT 1
),
sent AS (
    INSERT INTO continuum_inbox (run_id, kind, name, payload, delivery_id)
    SELECT tip.id, %(kind)s, %(name)s, %(payload)s::json, %(delivery_id)s
    FROM tip
    WHERE tip.state NOT IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (SELECT FROM repeated)
    ON CONFLICT (run_id, delivery_id) WHERE delivery_id IS NOT NULL DO NOTHING
    RETURNING 1
)
SELECT
    tip.id,
    tip.state,
    tip.owner_id,
    EXISTS (SELECT FROM sent) AS sent,
    EXISTS (SELECT FROM repeated) AS repeated
FROM tip
