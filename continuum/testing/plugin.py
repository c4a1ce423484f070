"""The pytest plugin: the fixtures ``continuum_env`` and ``continuum_worker``.

pytest imports this module in every project that has Continuum installed, whether it uses it or not, so nothing but
pytest is imported here before a fixture is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from continuum.testing.environment import Environment
    from continuum.testing.workers import TestingWorker

_CONNECTED = ("continuum.hints", "continuum.listening")


@pytest.fixture
def continuum_env() -> Iterator[Environment]:
    """Workflows in memory: no database, no worker, and time skips."""
    from continuum.testing import ready

    ready()
    from continuum.testing.environment import Environment

    environment = Environment()
    yield environment
    environment.close()


@pytest.fixture
def continuum_worker(request: pytest.FixtureRequest) -> Iterator[TestingWorker]:
    """A real worker inside the test, on the test's database."""
    from continuum.testing import ready

    ready()
    from continuum.testing.workers import TestingWorker

    if "transactional_db" in request.fixturenames:
        # Whatever the order in the test's signature: the worker has to stop before the tables are emptied.
        request.getfixturevalue("transactional_db")
    worker = TestingWorker()
    yield worker
    worker.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    # Starting and waiting for runs leaves connections in the background: a database in use cannot be dropped.
    for name in _CONNECTED:
        if module := sys.modules.get(name):
            module.close_all()
