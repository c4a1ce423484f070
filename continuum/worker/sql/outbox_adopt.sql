-- Gives the children of continued runs that have not ended to the successors. These have not asked for them: no command
-- waits for their outcome any more.
--
-- SKIP LOCKED, although every child counts: a child's row may be held by its own worker's commit, which may itself wait for
-- a row that this transaction holds. What is skipped, or ended after this statement began (and may have been continued
-- itself), is noted down as a message to the old run, and whoever forwards mail does the rest (see
-- mail_forward_children.sql).
-- Comes after outbox_continue.sql and in a statement of its own, as it must see the successors of children that were
-- continued in the same commit.
WITH given AS MATERIALIZED (
    SELECT g.old, g.new FROM unnest(%(olds)s::uuid[], %(news)s::uuid[]) AS g (old, new)
), children AS MATERIALIZED (
    SELECT g.old, r.id
    FROM given g JOIN continuum_runs r ON r.parent_run_id = g.old
    WHERE r.state NOT IN ('completed', 'failed', 'cancelled')
), held AS MATERIALIZED (
    SELECT g.new, r.id
    FROM given g JOIN continuum_runs r ON r.parent_run_id = g.old
    WHERE r.state NOT IN ('completed', 'failed', 'cancelled')
    FOR NO KEY UPDATE OF r SKIP LOCKED
), moved AS (
    UPDATE continuum_runs r SET parent_run_id = h.new, parent_command_id = NULL FROM held h WHERE r.id = h.id
)
INSERT INTO continuum_inbox (run_id, kind, payload)
SELECT c.old, 'child', json_build_object('child', c.id)
FROM children c
WHERE c.id NOT IN (SELECT h.id FROM held h)
