-- Takes back every task of runs that have ended without a word from their code. One that is just being claimed or answered is
-- left to whoever does so: its answer to a run that has ended means nothing.
DELETE FROM continuum_activity_tasks
WHERE (run_id, command_id) IN (
    SELECT t.run_id, t.command_id
    FROM continuum_activity_tasks t
    WHERE t.run_id = ANY(%(run_ids)s::uuid[])
    FOR UPDATE SKIP LOCKED
)
