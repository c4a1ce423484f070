-- Deletes one batch of messages nobody will read: their run has ended, or is no more. Walks continuum_inbox_unread_idx.
--
-- Messages of a continued run belong to its successor, and those of a failed run to its retry: they stay.
DELETE FROM continuum_inbox
WHERE (run_id, id) IN (
    SELECT message.run_id, message.id
    FROM continuum_inbox AS message
    LEFT JOIN continuum_runs AS run ON run.id = message.run_id
    WHERE message.consumed_at IS NULL
      AND message.created_at < clock_timestamp() - make_interval(secs => %(age)s)
      AND (run.id IS NULL OR (run.state IN ('completed', 'cancelled') AND run.continued_to_run_id IS NULL))
    LIMIT %(batch)s
    FOR UPDATE OF message SKIP LOCKED
)
