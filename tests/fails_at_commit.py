"""Transactions that fail, or whose session ends, in their commit: after all their statements have been answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

#: What happens in the commit, by a name for it.
ENDINGS = {
    "it fails": "RAISE EXCEPTION 'not today'",
    "its session is ended": "PERFORM pg_terminate_backend(pg_backend_pid())",
}
#: What takes it back, together with the trigger.
DROP = "DROP FUNCTION fails_at_commit() CASCADE"


def arrangement(table: str, ending: str) -> str:
    """Return the statements that have every commit end so that has written to a table."""
    return f"""
        CREATE FUNCTION fails_at_commit() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN {ENDINGS[ending]}; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER fails_at_commit AFTER INSERT OR UPDATE ON {table}
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fails_at_commit();
    """


@contextmanager
def commits_end(table: str, ending: str) -> Iterator[None]:
    """Arrange for it, for as long as a block takes."""
    with connection.cursor() as cursor:
        cursor.execute(arrangement(table, ending))
    try:
        yield
    finally:
        connection.close()  # the session may have been ended
        with connection.cursor() as cursor:
            cursor.execute(DROP)
