"""The pytest plugin in other people's projects: those that use it, and those that merely have Continuum installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LOADED = """
import sys

def test_nothing_is_loaded():
    ours = sorted(name for name in sys.modules if name.partition(".")[0] in ("continuum", "psycopg", "asgiref"))
    assert ours == ["continuum", "continuum.testing", "continuum.testing.plugin"]
"""
USES_IT = """
from continuum import activity, workflow

@activity
def add(n: int) -> int:
    return n + 1

@workflow
async def adds(n: int) -> int:
    return await add(n)

def test_it(continuum_env):
    assert continuum_env.result(continuum_env.start(adds, 1)) == 2
"""
SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["continuum"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "there-is-no-such-database"}}
"""


@pytest.fixture
def project(tmp_path):
    """Run a project's tests: ``project({"test_it.py": …}, "-q", DJANGO_SETTINGS_MODULE=…)``."""

    def run(files, *arguments, **environment):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "PYTEST_"))}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", *arguments],
            cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_a_project_without_django_does_not_notice(project):
    done = project({"test_it.py": LOADED}, "-p", "no:django")
    assert done.returncode == 0, done.stdout


def test_nor_does_a_django_project_that_does_not_use_it(project):
    """Nothing of the project is imported either, which would then be loaded before its coverage is measured."""
    loaded = LOADED.replace('"continuum", "psycopg", "asgiref")', '"continuum", "flows")')
    settings = SETTINGS.replace('["continuum"]', "[]") + 'CONTINUUM = {"WORKFLOW_MODULES": ["flows"]}\n'
    done = project({"test_it.py": loaded, "sets.py": settings, "flows.py": ""}, DJANGO_SETTINGS_MODULE="sets")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments", [(), ("-p", "no:django")], ids=["pytest-django", "plain pytest"])
def test_the_environment_needs_settings_and_no_database(project, arguments):
    files = {"test_it.py": USES_IT, "sets.py": SETTINGS}
    done = project(files, *arguments, DJANGO_SETTINGS_MODULE="sets")
    assert done.returncode == 0, done.stdout


def test_without_settings_it_says_what_is_missing(project):
    done = project({"test_it.py": USES_IT}, "-p", "no:django")
    assert done.returncode == 1
    assert "ImproperlyConfigured" in done.stdout
    assert "DJANGO_SETTINGS_MODULE" in done.stdout
