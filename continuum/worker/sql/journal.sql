-- One group commit: everything that this worker's runs want recorded, in one statement and so in one transaction.
--
-- The fence. "lease" locks the worker's own row against being declared dead (FOR KEY SHARE conflicts with the FOR UPDATE
-- that does so, and with nothing else: renewals pass). "lost" finds the runs whose token or owner is not the one they were
-- claimed with. A run changes hands only by its owner's release, which goes through this very statement, or after its owner
-- was declared dead; so what "lost" read cannot change before the commit, without a lock on a single run.
-- All or nothing: as long as one run is lost nothing at all is written. The answer names the lost ones, and the worker
-- sends the rest again. That is rare, and spares the common case a join of every record with what is held.
--
-- "lease" also sets for how long the transaction waits for a lock: the row of a run may be held by anybody's transaction, for
-- as long as that is open, and the others must not wait for it. See held_back.py. And how long it may stay open while we say
-- nothing: a process that is stopped in the middle of it must not keep its own row locked, and so be taken for alive.
--
-- "first_in_line": what was at work when it is given back goes on before what has not begun, as in runs_release_dead.
--
-- "coalesce" keeps the planner from looking for a run among all those of its owner: that index would serve any condition
-- that a run without an owner cannot meet.
WITH batch AS MATERIALIZED (
    SELECT b.run_id, b.token
    FROM unnest(%(run_ids)s::uuid[], %(tokens)s::bigint[]) AS b (run_id, token)
), lease AS MATERIALIZED (
    SELECT w.id FROM continuum_workers w
    WHERE w.id = %(worker)s AND w.state <> 'dead' AND set_config('lock_timeout', %(patience)s, true) IS NOT NULL
      AND set_config('idle_in_transaction_session_timeout', %(open_for)s, true) IS NOT NULL
    FOR KEY SHARE
), lost AS MATERIALIZED (
    SELECT b.run_id
    FROM batch b
    WHERE NOT EXISTS (SELECT 1 FROM lease) OR (
        -- Not EXISTS: planned for the values at hand (without prepared statements), that would read every owned run.
        SELECT true FROM continuum_runs r
        WHERE r.id = b.run_id AND r.lease_token + 0 = b.token AND coalesce(r.owner_id, 0) = %(worker)s
    ) IS NOT TRUE
), written AS (
    INSERT INTO continuum_events (run_id, seq, type, command_id, name, data, recorded_at)
    SELECT e.run_id, e.seq, e.type, e.command_id, e.name, e.data, timestamptz 'epoch' + e.time_us * interval '1 microsecond'
    FROM unnest(
        %(event_runs)s::uuid[], %(seqs)s::integer[], %(types)s::text[], %(command_ids)s::text[], %(names)s::text[],
        %(data)s::json[], %(times)s::bigint[]
    ) AS e (run_id, seq, type, command_id, name, data, time_us)
    WHERE NOT EXISTS (SELECT 1 FROM lost)
), consumed AS (
    DELETE FROM continuum_inbox i
    USING unnest(%(consumed_runs)s::uuid[], %(consumed)s::bigint[]) AS c (run_id, id)
    WHERE i.run_id = c.run_id AND i.id = c.id AND NOT EXISTS (SELECT 1 FROM lost)
), kept AS (
    UPDATE continuum_inbox i SET consumed_at = clock_timestamp()
    FROM unnest(%(kept_runs)s::uuid[], %(kept)s::bigint[]) AS k (run_id, id)
    WHERE i.run_id = k.run_id AND i.id = k.id AND NOT EXISTS (SELECT 1 FROM lost)
), updated AS (
    UPDATE continuum_runs r
    SET state = u.state,
        owner_id = CASE WHEN u.keep_owner THEN r.owner_id END,
        waiting_on = u.waiting_on,
        next_wakeup_at = CASE
            WHEN u.first_in_line THEN least(clock_timestamp(), (
                SELECT first.next_wakeup_at FROM continuum_runs AS first
                WHERE first.owner_id IS NULL AND first.next_wakeup_at IS NOT NULL AND first.priority = r.priority
                ORDER BY first.next_wakeup_at
                LIMIT 1
            ))
            ELSE timestamptz 'epoch' + u.next_wakeup_us * interval '1 microsecond'
        END,
        progress = coalesce(u.progress, r.progress),
        result = u.result,
        error = u.error,
        completed_at = timestamptz 'epoch' + u.completed_us * interval '1 microsecond',
        retention_until = timestamptz 'epoch' + u.retention_us * interval '1 microsecond',
        recoveries = coalesce(u.recoveries, r.recoveries)
    FROM unnest(
        %(update_runs)s::uuid[], %(update_tokens)s::bigint[], %(states)s::text[], %(keep_owner)s::boolean[], %(waiting_on)s::json[],
        %(next_wakeups)s::bigint[], %(progress)s::json[], %(results)s::json[], %(errors)s::json[],
        %(completed)s::bigint[], %(retention)s::bigint[], %(recoveries)s::smallint[], %(first_in_line)s::boolean[]
    ) AS u (
        run_id, token, state, keep_owner, waiting_on, next_wakeup_us, progress, result, error, completed_us, retention_us,
        recoveries, first_in_line
    )
    -- Owner and token once more, since this is checked again on a row that has changed since "lost" looked: a statement of
    -- ours that was cut off, and which the server is still at work on, must not write over what came after it. The owner
    -- alone does not tell: the run may have been given back and claimed by this very worker again.
    WHERE r.id = u.run_id AND r.lease_token + 0 = u.token AND coalesce(r.owner_id, 0) = %(worker)s
      AND NOT EXISTS (SELECT 1 FROM lost)
)
SELECT run_id FROM lost
