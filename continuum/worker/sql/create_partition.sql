-- Makes one month's partition of the history table, unless it exists, and moves what the default partition holds of it.
--
-- Attaching a partition locks the parent only against other schema changes, but the default partition against everybody,
-- since it must be checked for rows of the new range. That will do for a month to come. But a statement that was planned
-- before and waits for the default partition does not know of the new one: it would read there what has moved away, or
-- write what does not belong there any more. So where there are histories of that month, or may be by now, everybody is kept
-- from planning: the parent is locked as well.
--
-- Whoever waits for such a lock makes all who come later wait as well. So the wait is bounded, for the two tables and for
-- the advisory lock that keeps two processes from doing the same; on a timeout nothing has happened, and the next round
-- tries again. So is the time that the locks are held: what would take long to move is left for somebody who says so.
-- Lock order: advisory, parent, default.
DO $partition$
DECLARE
    old_timeout text := current_setting('lock_timeout');
    parent regclass := 'continuum_events';
    home text := (SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class WHERE oid = parent);
    place oid := (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = parent);
    landlord oid := (SELECT relowner FROM pg_catalog.pg_class WHERE oid = parent);
    most bigint := {most};
    to_come boolean := '{since}'::timestamptz > clock_timestamp() + interval '1 hour';
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('continuum_events partitions', 0));
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_inherits AS link JOIN pg_catalog.pg_class AS child ON child.oid = link.inhrelid
             WHERE link.inhparent = parent AND child.relname = '{name}'
        ) THEN
            IF to_come AND NOT EXISTS (
                SELECT FROM continuum_events_default WHERE run_id >= '{lower}' AND run_id < '{upper}'
            ) THEN
                LOCK TABLE ONLY continuum_events IN SHARE UPDATE EXCLUSIVE MODE;
                most := 0;
            ELSE
                LOCK TABLE ONLY continuum_events IN ACCESS EXCLUSIVE MODE;
            END IF;
            LOCK TABLE continuum_events_default IN ACCESS EXCLUSIVE MODE;
            IF most < (
                SELECT count(*) FROM (
                    SELECT FROM continuum_events_default WHERE run_id >= '{lower}' AND run_id < '{upper}' LIMIT most + 1
                ) AS moving
            ) THEN
                RAISE lock_not_available USING MESSAGE = format('more than %s events would have to move', most);
            END IF;
            EXECUTE format('CREATE TABLE %s.{name} (LIKE %s INCLUDING ALL)', home, parent);
            EXECUTE format(
                'WITH moved AS (DELETE FROM continuum_events_default WHERE run_id >= %L AND run_id < %L RETURNING *) '
                'INSERT INTO %s.{name} SELECT * FROM moved',
                '{lower}', '{upper}', home);
            EXECUTE format(
                'ALTER TABLE %s ATTACH PARTITION %s.{name} FOR VALUES FROM (%L) TO (%L)',
                parent, home, '{lower}', '{upper}');
            -- Whoever owns the history must be able to drop it, also where somebody with more rights has made it.
            IF landlord <> quote_ident(current_user)::regrole AND (
                has_schema_privilege(landlord, place, 'CREATE') OR current_setting('is_superuser') = 'on'
            ) THEN
                EXECUTE format('ALTER TABLE %s.{name} OWNER TO %s', home, landlord::regrole);
            END IF;
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            RAISE NOTICE 'partition {name} is left for later: %', SQLERRM;
    END;
    PERFORM set_config('lock_timeout', old_timeout, true);
END
$partition$
