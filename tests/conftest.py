import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from continuum.testing.postgres import EmbeddedPostgres
from tests import settings
from tests.projects import make_project as make_project, project as project

MOST_PROCESSES = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Say what ``-n auto`` means: a process for each processor, but none beside this one for files that are named.

    A few files are through before other processes have started. A server that ``DATABASE_URL`` names is one, and tests
    of two processes would disturb each other on it.
    """
    if config.option.file_or_dir or settings.POSTGRES is None:
        return 0
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(available or 1, MOST_PROCESSES)


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores it in what it runs in the background, and so would the processes that tests send it to.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None) and settings.POSTGRES is None:
        raise pytest.UsageError("-n: each process needs a server of its own, and DATABASE_URL names one: leave one out")


def pytest_unconfigure() -> None:
    # Not left to the exit of the interpreter, which the processes of pytest-xdist do not come to.
    if settings.POSTGRES is not None:
        settings.POSTGRES.stop()


@pytest.fixture(autouse=True)
def no_background_connections() -> Iterator[None]:
    """Close the connections that hints and waiting keep: a database in use cannot be dropped."""
    yield
    for name in ("continuum.hints", "continuum.listening"):
        if module := sys.modules.get(name):
            module.close_all()


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of the database the test runs in: also of the test's copy, which ``DATABASE_URL`` does not name."""
    request.getfixturevalue("django_db_setup")
    from django.db import connections

    return url_of(connections["default"].settings_dict)


@pytest.fixture
def subprocess_environment(database_url: str) -> dict[str, str]:
    """Environment for a process that is to work in the database of this test, such as a worker."""
    return os.environ | {"DATABASE_URL": database_url, "DJANGO_SETTINGS_MODULE": "tests.settings"}


@pytest.fixture
def start_patient_worker(subprocess_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start worker processes that neither poll nor let a lease run out, and wait until they serve.

    ``start_patient_worker("--threads", "1", settings="tests.settings_patient")``. Whatever still runs at the end of the
    test is killed.
    """
    from continuum.models import Worker
    from tests.waiting_for import eventually
    from tests.workers import ProcessWorker

    started: list[ProcessWorker] = []

    def start(*arguments: str, settings: str = "tests.settings_patient") -> ProcessWorker:
        log = tmp_path / f"patient{len(started)}.log"
        worker = ProcessWorker(subprocess_environment, "--settings", settings, *arguments, log=log)
        started.append(worker)
        eventually(lambda: Worker.objects.filter(pid=worker.process.pid, session_lock=True).exists(), 60)
        return worker

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def start_postgres() -> Iterator[Callable[..., EmbeddedPostgres]]:
    """Start PostgreSQL servers of the test's own, for tests that stop or crash them: ``start_postgres(fsync="on")``."""
    with ExitStack() as servers:

        def start(**options: Any) -> EmbeddedPostgres:
            return servers.enter_context(EmbeddedPostgres.temporary(options))

        yield start


def url_of(database: dict[str, Any]) -> str:
    """Return the URL of an entry of ``DATABASES``, in the form that allows a socket's directory as host."""
    user = quote(database["USER"], safe="")
    if database["PASSWORD"]:
        user += ":" + quote(database["PASSWORD"], safe="")
    address = {"host": database["HOST"], "port": database["PORT"]} | database["OPTIONS"]
    query = urlencode({name: value for name, value in address.items() if value not in ("", None)}, quote_via=quote)
    return f"postgresql://{user}@/{quote(database['NAME'], safe='')}?{query}"
