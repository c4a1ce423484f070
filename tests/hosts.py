"""Host projects: the test project with settings of its own, in a process of its own, on the database of the test.

Connections, translations and URLs take on a project's settings as the process begins, so that to override them in the
process of the tests would prove less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What scripts begin with: ``visit`` gets a page of the admin as a superuser, ``work`` runs a worker until it is idle.
PRELUDE = """
import django; django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
import continuum
from tests.app.workflows import effects, fails, five_steps, listens
from tests.app.models import Effect
from tests.hosts import visit

def work():
    call_command("continuum_worker", burst=True, processes=1, concurrency=10, threads=2)
"""


class Host:
    """A project: ``settings`` is Python that comes after the settings of the tests, other modules lie beside them."""

    def __init__(self, folder: Path, environment: dict[str, str], settings: str, **modules: str) -> None:
        self.folder = folder
        modules["host_settings"] = f"from tests.settings import *\n{textwrap.dedent(settings)}"
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
        self.environment = {
            **environment,
            "DJANGO_SETTINGS_MODULE": "host_settings",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
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
    """Make a host project on the database of this test: ``host('USE_TZ = False', urls='urlpatterns = []')``."""
    return lambda settings, **modules: Host(tmp_path, subprocess_environment, settings, **modules)


def visit(*addresses: str, **more: str) -> list[str]:
    """Return pages as a superuser sees them. Each has to be there, without a way round."""
    from django.contrib.auth import get_user_model
    from django.test import Client

    users = get_user_model()
    name = users.USERNAME_FIELD
    user = users._default_manager.filter(**{name: "root@shop.example"}).first()
    if user is None:
        user = users._default_manager.create_superuser(**{name: "root@shop.example", "password": "secret"})
    client = Client(**more)
    client.force_login(user)
    pages = []
    for address in addresses:
        response = client.get(address)
        assert response.status_code == 200, (address, response.status_code, response.headers)
        pages.append(b"".join(response).decode())
    return pages
