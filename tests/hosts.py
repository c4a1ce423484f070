"""Host projects: the test project with settings of its own, in a process of its own, on the database of the test.

Connections, translations and URLs take on a project's settings as the process begins, so that to override them in the
process of the tests would prove less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.test import Client
from psycopg import sql

import continuum

ROOT = Path(__file__).resolve().parent.parent
# What scripts begin with.
PRELUDE = """
import django; django.setup()
import continuum
from django.core.management import call_command
from tests.app.workflows import five_steps
from tests.hosts import a_day, visit, work
"""


class Host:
    """A project: ``settings`` is Python that comes after the settings of the tests; other files lie beside them."""

    def __init__(self, folder: Path, environment: dict[str, str], settings: str, files: dict[str, str]) -> None:
        self.folder = folder
        settings = f"from tests.settings import *\n{textwrap.dedent(settings)}"
        for name, text in {**files, "host_settings.py": settings}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text))
        self.environment = {
            **environment,
            "DJANGO_SETTINGS_MODULE": "host_settings",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]),
        }

    def run(self, script: str) -> str:
        """Run a script in the project, after ``PRELUDE``; return what it printed. It must not fail, nor warn."""
        return self._process("-c", PRELUDE + textwrap.dedent(script))

    def manage(self, *arguments: str) -> str:
        """Run a management command; return what it printed. It must not fail."""
        return self._process("-m", "django", *arguments)

    def _process(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def host(tmp_path: Path, subprocess_environment: dict[str, str]) -> Callable[..., Host]:
    """Make a host project on the database of this test: ``host('USE_TZ = False', {'urls.py': 'urlpatterns = []'})``."""

    def make(settings: str, files: dict[str, str] | None = None, **environment: str) -> Host:
        return Host(tmp_path, subprocess_environment | environment, settings, files or {})

    return make


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Callable[[str], str]]:
    """Make databases with nothing in them, gone when the test is over: ``empty_database('Shop Orders')`` is a URL."""
    names = []

    def make(name: str) -> str:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)).as_string(cursor.connection))
        names.append(name)
        start, _, rest = database_url.rpartition("@/")
        return f"{start}@/{quote(name, safe='')}?{rest.partition('?')[2]}"

    yield make
    for name in names:
        with connection.cursor() as cursor:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            cursor.execute(drop.as_string(cursor.connection))


def superuser() -> Client:
    """Return a browser, as it were, with a superuser logged in."""
    users = get_user_model()
    name = users.USERNAME_FIELD
    user = users._default_manager.filter(**{name: "root@shop.example"}).first()
    if user is None:
        user = users._default_manager.create_superuser(**{name: "root@shop.example", "password": "secret"})
    client = Client()
    client.force_login(user)
    return client


def visit(*addresses: str) -> list[str]:
    """Return pages as a superuser sees them. Each has to be there, without a way round."""
    client, pages = superuser(), []
    for address in addresses:
        response = client.get(address)
        assert response.status_code == 200, (address, response.status_code, response.headers)
        pages.append(b"".join(response).decode())
    return pages


def work() -> None:
    """Run a worker until there is nothing to do."""
    call_command("continuum_worker", burst=True, processes=1, concurrency=10, threads=2, verbosity=0)


def a_day(admin: str = "/admin/", mount: str = "") -> None:
    """Go through what a project does with runs: start, signal, cancel, work off, read, search, look at, act on, prune.

    Args:
        admin: where the admin is; empty if there is none.
        mount: the path that the project is mounted at.
    """
    from tests.app.models import Effect
    from tests.app.workflows import effects, fails, five_steps, listens

    done = continuum.start(effects, "day", 3, attributes={"plan": "pro", "seats": 12_345})
    broken, lost = continuum.start(fails, attributes={"plan": "free"}), continuum.start(listens)
    many = continuum.start_many(five_steps, range(3))
    waits, created = continuum.get_or_start(listens, idempotency_key="only one")
    assert created
    assert continuum.get_or_start(listens, idempotency_key="only one") == (waits, False)
    work()
    assert len(continuum.result(done, timeout=60)) == Effect.objects.count() == 3
    assert [continuum.result(run, timeout=60) for run in many] == [5, 6, 7]
    assert continuum.wait_run(broken, timeout=60).state == "failed"
    continuum.signal(waits, "go", {"total": 1_234.5})
    continuum.cancel(lost, reason="enough")
    continuum.set_attributes(done, {"seen": True})
    continuum.retry(broken)
    forked = continuum.fork(many[0], before="0:3")
    work()
    assert continuum.result(waits, timeout=60) == {"total": 1_234.5}
    assert continuum.result(forked, timeout=60) == 5
    assert continuum.get_run(lost).state == "cancelled"
    (found,) = continuum.query(where=[("eq", ["attributes", "seats"], 12_345)]).entries
    assert (found.id, found.attributes) == (done.id, {"plan": "pro", "seats": 12_345, "seen": True})
    assert continuum.count(group_by="state") == {"completed": 6, "failed": 1, "cancelled": 1}
    if admin:
        _look_at(admin, mount, done.id, broken.id)
    for name, options in (
        ("continuum_runs", ["list"]),
        ("continuum_runs", ["show", str(done.id)]),
        ("continuum_runs", ["history", str(done.id)]),
        ("continuum_health", ["--format", "json"]),
        ("continuum_audit", ["--replay"]),
        ("continuum_partitions", ["--create", "--dry-run"]),
        ("continuum_prune", ["--older-than", "0s", "--execute"]),
    ):
        out = StringIO()
        call_command(name, *options, stdout=out)
        assert out.getvalue()
    assert continuum.count() == 0


def _look_at(admin: str, mount: str, done: UUID, broken: UUID) -> None:
    page = f"{admin}continuum/run/{done}/"
    listed, shown, events, *_ = visit(
        f"{admin}continuum/run/?q=plan%3Apro&state__exact=completed",
        f"{page}change/",
        f"{page}events.jsonl",
        f"{page}fragment/",
        f"{page}do/fork/",
        admin,
        f"{admin}continuum/run/",
        f"{admin}continuum/run/{broken}/change/",
        f"{admin}continuum/worker/",
        f"{admin}continuum/dashboard/",
        f"{admin}continuum/dashboard/fragment/?range=24h",
    )
    assert f'href="{mount}{page}change/"' in listed
    assert f'data-continuum-fragment="{mount}{page}fragment/"' in shown
    assert [json.loads(line)["seq"] for line in events.splitlines()] == [1, 2, 3, 4]
    done_so = superuser().post(f"{page}do/set_attributes/", {"attributes": '{"looked at": true}'})
    assert (done_so.status_code, done_so.headers["Location"]) == (302, f"{mount}{page}change/")
    assert continuum.get_run(done).attributes["looked at"] is True
    (shown,) = visit(f"{page}change/")
    assert "root@shop.example" in shown
