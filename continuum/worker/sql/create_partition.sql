-- Makes one month's partition of the history table, unless it exists, and moves what the default partition holds of it.
--
-- Attaching a partition locks the parent only against other schema changes, but the default partition against everybody,
-- since it must be checked for rows of the new range. Whoever waits for that lock makes all who come later wait as well.
-- So the wait is bounded, for the two tables and for the advisory lock that keeps two processes from doing the same; on a
-- timeout nothing has happened, and the next round tries again. Lock order: advisory, parent, default.
DO $partition$
DECLARE
    old_timeout text := current_setting('lock_timeout');
    parent regclass := 'continuum_events';
    home text := (SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class WHERE oid = parent);
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('continuum_events partitions', 0));
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_inherits AS link JOIN pg_catalog.pg_class AS child ON child.oid = link.inhrelid
             WHERE link.inhparent = parent AND child.relname = '{name}'
        ) THEN
            LOCK TABLE ONLY continuum_events IN SHARE UPDATE EXCLUSIVE MODE;
            LOCK TABLE continuum_events_default IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('CREATE TABLE %s.{name} (LIKE %s INCLUDING ALL)', home, parent);
            EXECUTE format(
                'WITH moved AS (DELETE FROM continuum_events_default WHERE run_id >= %L AND run_id < %L RETURNING *) '
                'INSERT INTO %s.{name} SELECT * FROM moved',
                '{lower}', '{upper}', home);
            EXECUTE format(
                'ALTER TABLE %s ATTACH PARTITION %s.{name} FOR VALUES FROM (%L) TO (%L)',
                parent, home, '{lower}', '{upper}');
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            RAISE NOTICE 'partition {name} is left for later: %', SQLERRM;
    END;
    PERFORM set_config('lock_timeout', old_timeout, true);
END
$partition$
