"""``continuum_worker``: a real worker inside a test, in threads of the test's process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from continuum.conf import settings as continuum_settings
from continuum.worker.hygiene import SharedConnections
from continuum.worker.node import Node
from continuum.worker.options import NodeOptions

__all__ = ["TestingWorker"]

# How long a worker may take to begin, or to give its runs back, in seconds.
_PATIENCE = 30.0


class TestingWorker:
    """A worker that works on the test's database, with the settings as the test has them.

    It is a worker like any other: leases, journal, activities in threads with connections of their own. It sees what is
    committed, so the test must not be in a transaction.
    """

    __test__ = False  # not for pytest to collect

    def __init__(self) -> None:
        self._node: Node | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether one works in the background."""
        return self._thread is not None

    def run_until_idle(
        self, *, timeout: float = 60.0, threads: int = 4, concurrency: int = 50, queues: Any = None
    ) -> None:
        """Work until nothing is left to do now: every run has ended, or waits for time to pass or for a signal.

        An activity that is to be tried again, and a task of a queue, are waited for; a timer is not.

        Args:
            timeout: seconds after which it is given up.
            threads: how many ``def`` activities may run at once.
            concurrency: how many runs may make progress at once.
            queues: names of the queues it serves; all unless given.

        Raises:
            TimeoutError: it was not done in time.
            RuntimeError: one works in the background already.
        """
        self._start(burst=True, threads=threads, concurrency=concurrency, queues=queues)
        self._join(timeout, "has not come to rest")

    def start(self, *, threads: int = 4, concurrency: int = 50, queues: Any = None) -> TestingWorker:
        """Have one work in the background until :meth:`stop`, or the end of the test. Arguments as above."""
        self._start(burst=False, threads=threads, concurrency=concurrency, queues=queues)
        return self

    def stop(self) -> None:
        """Stop the one in the background: activities may end first, then everything is given back.

        Raises:
            Exception: what has broken it, if anything has.
        """
        if self._node is not None:
            self._node.stop()
            self._join(_PATIENCE, "does not stop")

    def close(self) -> None:
        """Leave nothing behind. The fixture does so when the test has ended."""
        self.stop()

    def _start(self, *, burst: bool, threads: int, concurrency: int, queues: Any) -> None:
        if self.running:
            raise RuntimeError("a worker works in the background already: stop() it first")
        alias = continuum_settings.DATABASE
        _refuse_transactions(alias)
        _refuse_half_a_schema(alias)
        options = NodeOptions(
            database=alias,
            queues=None if queues is None else tuple(queues),
            concurrency=concurrency,
            threads=threads,
            burst=burst,
            drain_timeout=5.0,
            name="continuum_worker",
        )
        began = threading.Event()
        self._failure = None
        self._node = Node(options, on_started=lambda listening: began.set())
        self._thread = threading.Thread(target=self._serve, args=(self._node, began), name="continuum_worker")
        self._thread.daemon = True
        self._thread.start()
        if not began.wait(_PATIENCE) and self._failure is None:
            self.stop()
            raise TimeoutError(f"the worker has not begun after {_PATIENCE:g} seconds: see the log for why")
        if self._failure is not None:
            self._join(_PATIENCE, "does not stop")

    def _serve(self, node: Node, began: threading.Event) -> None:
        try:
            asyncio.run(_serve(node))
        except BaseException as error:
            self._failure = error
        finally:
            connections.close_all()
            began.set()

    def _join(self, timeout: float, what: str) -> None:
        thread, node = self._thread, self._node
        assert thread is not None
        assert node is not None
        thread.join(timeout)
        if thread.is_alive():
            node.stop()
            thread.join(_PATIENCE)
            self._thread = self._node = None
            raise TimeoutError(f"the worker {what} after {timeout:g} seconds")
        self._thread = self._node = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


async def _serve(node: Node) -> None:
    status = await node.run()
    # Async activities use the ORM in a thread of asgiref's, which outlives the worker: its connections must not.
    if SharedConnections().used:
        await sync_to_async(connections.close_all)()
    if status:
        raise RuntimeError("the worker could not give its runs back in time: see the log for why")


def _refuse_transactions(alias: str) -> None:
    how = (
        "continuum_worker needs the tables of the test's database, and no transaction around the test: have the test "
        "use the fixture transactional_db, or mark it with @pytest.mark.django_db(transaction=True)"
    )
    try:
        connections[alias].ensure_connection()
    except RuntimeError as error:  # pytest-django's, for a test that has not asked for a database
        pytest.fail(f"{how} ({error})", pytrace=False)
    if connections[alias].in_atomic_block:
        pytest.fail(f"{how}. This one is in a transaction, of which a worker sees nothing", pytrace=False)


def _refuse_half_a_schema(alias: str) -> None:
    """Fail where tables were made of the models alone: a worker would try over and over, and the test would hang."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT to_regclass('continuum_lease_token_seq') IS NULL")
        if cursor.fetchone()[0]:
            pytest.fail(
                "continuum_worker needs what Continuum's migrations make beside the tables, and the test database "
                "lacks it: run the tests without --nomigrations (with --create-db, if the database was kept), and "
                "leave 'continuum' out of MIGRATION_MODULES",
                pytrace=False,
            )
