"""The PostgreSQL that everybody is measured on, and what it says about the work done."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from benchmarks.usage import parent
from continuum.testing.postgres import EmbeddedPostgres

__all__ = ["Address", "Counters", "Observer", "Server"]

# Stock PostgreSQL 18, fsync and synchronous_commit on. Only what would make rounds differ is moved out of the way: the
# log must not fill up in one round and be checkpointed in the next, and peers open many connections.
OPTIONS = {
    "max_connections": 300,
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    # Loaded, but it counts only where a workload asks for it.
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",
}

FLOOR_SECONDS = 0.2


class Address(NamedTuple):
    """Where a database is: on a Unix socket, as the superuser."""

    socket: str
    port: str
    user: str
    name: str

    @property
    def url(self) -> str:
        """The address as libpq and SQLAlchemy understand it."""
        return f"postgresql://{self.user}@/{self.name}?host={self.socket}&port={self.port}"


class Server:
    """One embedded server with a template database for each contender; to be used as a context manager.

    Args:
        commit_delay: microseconds that a commit waits for company (``commit_siblings`` is 0 then); 0 is PostgreSQL's
            own default.
        directory: where the files go while it runs, by default where temporary files go.
    """

    def __init__(self, commit_delay: int = 0, directory: Path | None = None) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="continuum-benchmarks-", dir=directory))
        self._home.chmod(0o711)  # let the server's account through to its own, closed folder
        self._postgres = EmbeddedPostgres(self._home, {**OPTIONS, **_delay(commit_delay)})
        self._commit_delay = commit_delay
        self._made = 0

    def __enter__(self) -> Server:
        self._postgres.start()
        self._admin = psycopg.connect(self.address("postgres").url, autocommit=True)
        self._admin.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
        self._admin.execute("CREATE TABLE floor (number integer)")
        return self

    def __exit__(self, *exception: object) -> None:
        self._admin.close()
        self._postgres.stop()
        for folder in (self._postgres.home, self._home):
            shutil.rmtree(folder, ignore_errors=True)

    def address(self, name: str) -> Address:
        """Return where the database ``name`` is."""
        settings = self._postgres.django_database(name)
        return Address(settings["HOST"], settings["PORT"], settings["USER"], name)

    def create(self, name: str, template: str | None = None) -> Address:
        """Create a database, empty or as a copy of another."""
        self._admin.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return self.address(name)

    def fresh(self, template: str) -> Address:
        """Return a new copy of a template database."""
        self._made += 1
        return self.create(f"round_{self._made}", template)

    def drop(self, address: Address) -> None:
        """Drop a database, whoever is still connected."""
        self._admin.execute(f'DROP DATABASE IF EXISTS "{address.name}" WITH (FORCE)')

    def commits_a_second(self) -> float:
        """Return how many single-row commits one connection does in a second: what the disk allows just now."""
        started = time.perf_counter()
        made = 0
        while (taken := time.perf_counter() - started) < FLOOR_SECONDS:
            self._admin.execute("INSERT INTO floor VALUES (1)")
            made += 1
        return made / taken

    def set_commit_delay(self, microseconds: int | None) -> None:
        """Set ``commit_delay`` for sessions from now on; None goes back to what the server was started with."""
        for name, value in _delay(self._commit_delay if microseconds is None else microseconds).items():
            self._admin.execute(f"ALTER SYSTEM SET {name} = {value}")
        self._admin.execute("SELECT pg_reload_conf()")


def _delay(microseconds: int) -> dict[str, int]:
    return {"commit_delay": microseconds, "commit_siblings": 0 if microseconds else 5}


class Counters(NamedTuple):
    """What the server did between two moments."""

    commits: int
    wal_records: int
    wal_bytes: int


class Observer:
    """Watches one database from a connection of its own.

    Args:
        address: the database.
    """

    def __init__(self, address: Address) -> None:
        self._connection = psycopg.connect(address.url, autocommit=True)
        self._server = psycopg.connect(address._replace(name="postgres").url, autocommit=True)
        self._name = address.name
        self.looks = 0

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self._server.close()

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        self.looks += 1
        return self._connection.execute(query, parameters or None).fetchall()

    def value(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the one value of a query."""
        return self.rows(query, parameters)[0][0]

    def count_statements(self) -> None:
        """Have the statements of sessions that begin from now on counted in ``pg_stat_statements``."""
        self._connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        self._connection.execute(f"ALTER DATABASE {self._name} SET pg_stat_statements.track = 'all'")

    def server_pid(self) -> int:
        """Return the process id of the server, whose children do all the work."""
        return parent(self._server.info.backend_pid)

    def lsn(self) -> str:
        """Return where the log stands."""
        return self._server.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()[0]  # type: ignore[index]

    def written(self, start: str, end: str) -> Counters:
        """Return what the log holds between two positions. Commits that wrote nothing leave no trace there."""
        # The end of what is flushed, which may lie a little before the end of what is inserted.
        row = self._server.execute(
            """
            SELECT
                coalesce(sum(count) FILTER (WHERE "resource_manager/record_type" LIKE 'Transaction/COMMIT%%'), 0)::int,
                coalesce(sum(count), 0)::int,
                (%(end)s::pg_lsn - %(start)s::pg_lsn)::bigint
            FROM pg_get_wal_stats(%(start)s, least(%(end)s::pg_lsn, pg_current_wal_flush_lsn()), true)
            """,
            {"start": start, "end": end},
        ).fetchone()
        return Counters(*row)  # type: ignore[misc]

    def transactions(self) -> int:
        """Return how many transactions the database has seen, those that only read included, and ours left out.

        Sessions report theirs with a delay, and for certain when they end: ask when the workers have stopped.
        """
        row = self._server.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = %s", (self._name,)
        ).fetchone()
        return row[0] - self.looks  # type: ignore[index]

    def wait(self, condition: Callable[[], bool], what: str, *, timeout: float = 120.0, pause: float = 0.01) -> float:
        """Wait until ``condition()`` holds.

        Args:
            condition: asked again and again.
            what: what is waited for, for the error.
            timeout: seconds.
            pause: seconds between two looks.

        Returns:
            When it was seen to hold, by ``time.perf_counter()``.

        Raises:
            TimeoutError: it did not come to hold in time.
        """
        deadline = time.perf_counter() + timeout
        while not condition():
            if time.perf_counter() > deadline:
                raise TimeoutError(f"waited {timeout:g} s in vain until {what}")
            time.sleep(pause)
        return time.perf_counter()
