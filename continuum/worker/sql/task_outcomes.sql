-- How a batch of attempts ended: the task goes, or waits for its next attempt, and the run gets a message, all or nothing for
-- each. What is not this worker's any more (the token) is left alone. Writing it twice does nothing the second time.
-- Returns whose outcome counted, and the owner of each run, who is told after the commit.
--
-- The rows are locked in the order given, which is the same for everybody.
WITH held AS MATERIALIZED (
    SELECT o.run_id, o.command_id, o.payload, o.next_us, o.details, t.activity
    FROM unnest(
        %(run_ids)s::uuid[], %(commands)s::text[], %(tokens)s::bigint[], %(payloads)s::json[], %(next)s::bigint[],
        %(details)s::json[]
    ) AS o (run_id, command_id, token, payload, next_us, details)
    JOIN continuum_activity_tasks t ON t.run_id = o.run_id AND t.command_id = o.command_id
    WHERE t.state = 'running' AND t.owner_id = %(worker)s AND t.lease_token = o.token
    FOR UPDATE OF t
), over AS (
    DELETE FROM continuum_activity_tasks t
    USING held h
    WHERE t.run_id = h.run_id AND t.command_id = h.command_id AND h.next_us IS NULL
), again AS (
    UPDATE continuum_activity_tasks t
    SET state = 'ready', attempt = least(t.attempt + 1, 32767), recoveries = 0, owner_id = NULL, claimed_at = NULL,
        heartbeat_at = NULL, heartbeat_details = coalesce(h.details, t.heartbeat_details),
        due_at = timestamptz 'epoch' + h.next_us * interval '1 microsecond'
    FROM held h
    WHERE t.run_id = h.run_id AND t.command_id = h.command_id AND h.next_us IS NOT NULL
), told AS (
    INSERT INTO continuum_inbox (run_id, kind, name, command_id, payload)
    SELECT h.run_id, 'activity', h.activity, h.command_id, h.payload FROM held h
)
SELECT h.run_id, h.command_id, (SELECT r.owner_id FROM continuum_runs r WHERE r.id = h.run_id) FROM held h
