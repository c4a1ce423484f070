-- Lets a failed run, locked before, go on: its history stays and gets a mark; what is to be done again is worked out by
-- whoever claims it.
-- What its failed life has left behind would hit the new one: fences that keep late attempts out (the lease keeps those out
-- from now on), tasks, requests to cancel, and failures nobody has read of, where what failed goes on. What succeeded is
-- kept, read or unread.
-- The records of transactional activities go where the history has their results, not counting what an earlier retry has
-- left out: a step that a saga has undone is to take effect again. One whose result never got into the history has taken
-- effect, and its record keeps it from doing so twice.
-- The time in which it stood still does not count against its time limit.
WITH last AS (
    SELECT coalesce(max(seq), 0) AS seq, max(recorded_at) AS recorded_at
    FROM continuum_events
    WHERE run_id = %(run_id)s
),
marked AS (
    INSERT INTO continuum_events (run_id, seq, type, data, recorded_at)
    SELECT %(run_id)s::uuid, last.seq + 1, 'run_retried', '{}', greatest(clock_timestamp(), last.recorded_at)
    FROM last
),
dropped AS (
    SELECT json_array_elements_text(data -> 'dropped')::integer AS seq
    FROM continuum_events
    WHERE run_id = %(run_id)s AND type = 'run_resumed'
),
records AS (
    DELETE FROM continuum_activity_results AS record
    WHERE record.run_id = %(run_id)s AND record.kind = 'activity'
      AND (
          record.result IS NULL
          OR EXISTS (
              SELECT
              FROM continuum_events AS event
              WHERE event.run_id = %(run_id)s AND event.command_id = record.command_id
                AND event.type = 'activity_completed' AND event.seq NOT IN (SELECT seq FROM dropped)
          )
      )
),
tasks AS (
    DELETE FROM continuum_activity_tasks
    WHERE run_id = %(run_id)s
),
stale AS (
    DELETE FROM continuum_inbox AS message
    WHERE message.run_id = %(run_id)s AND message.consumed_at IS NULL
      AND (
          message.kind = 'cancel'
          OR message.kind = 'activity' AND message.payload ->> 'error' IS NOT NULL
          OR message.kind = 'child' AND message.payload ->> 'state' = 'failed'
             AND EXISTS (SELECT FROM continuum_runs AS child WHERE child.id = (message.payload ->> 'child')::uuid)
      )
)
UPDATE continuum_runs
SET state = 'suspended',
    result = NULL,
    error = NULL,
    waiting_on = '[]',
    recoveries = 0,
    next_wakeup_at = clock_timestamp(),
    deadline_at = deadline_at + (clock_timestamp() - completed_at),
    completed_at = NULL,
    retention_until = NULL
WHERE id = %(run_id)s
