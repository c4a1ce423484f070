-- What stands for runs claimed again: how long their histories are (one look at the end of each in the primary key), which of
-- their commands are out as tasks, and whether there is mail. One statement, one snapshot: of a task that is gone, the message is there.
SELECT c.id,
    coalesce((SELECT e.seq FROM continuum_events e WHERE e.run_id = c.id ORDER BY e.seq DESC LIMIT 1), 0),
    ARRAY(SELECT t.command_id FROM continuum_activity_tasks t WHERE t.run_id = c.id AND t.state <> 'local'),
    EXISTS (SELECT 1 FROM continuum_inbox i WHERE i.run_id = c.id AND i.consumed_at IS NULL)
FROM unnest(%(run_ids)s::uuid[]) AS c (id)
