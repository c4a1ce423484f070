-- Drops one month's partition of the history, unless a run of that month is there after all.
-- Whoever writes to the history of such a run waits for this lock and then writes to the default partition; whoever has
-- made one before is seen here. Nobody waits behind this for longer than half a second: then it is left for the next time.
DO $drop$
DECLARE
    old_timeout text := current_setting('lock_timeout');
    parent regclass := 'continuum_events';
    home text := (SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class WHERE oid = parent);
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    BEGIN
        LOCK TABLE ONLY continuum_events IN ACCESS EXCLUSIVE MODE;
        IF NOT EXISTS (SELECT FROM continuum_runs WHERE id >= '{lower}' AND id < '{upper}') THEN
            EXECUTE format('DROP TABLE IF EXISTS %s.{name}', home);
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            RAISE NOTICE 'partition {name} is left for later: %', SQLERRM;
    END;
    PERFORM set_config('lock_timeout', old_timeout, true);
END
$drop$
