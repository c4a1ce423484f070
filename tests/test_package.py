"""The package as its users get it: what importing it costs, what it exports, what a wheel holds."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import continuum

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "continuum"

# Modules that would make the import slow, or tie it to a configured project.
HEAVY = ("django", "psycopg", "asyncio", "concurrent.futures", "logging", "inspect", "dataclasses")


def modules_after(code: str) -> set[str]:
    """Run ``code`` in a fresh interpreter and return the names of the modules it has loaded."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def type_checking_imports() -> dict[str, str]:
    """Return what ``continuum/__init__.py`` imports for type checkers: name to module."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_importing_continuum_loads_neither_django_nor_anything_else_that_is_heavy():
    loaded = modules_after("import continuum")
    assert "continuum" in loaded
    assert not {name for name in loaded if name.startswith(HEAVY)}
    assert {name for name in loaded if name.startswith("continuum")} == {"continuum"}


def test_errors_are_available_without_django():
    loaded = modules_after("from continuum import ActivityError, RunFailedError")
    assert not {name for name in loaded if name.split(".")[0] in ("django", "psycopg", "asyncio")}


def test_the_language_of_workflows_is_available_without_django():
    loaded = modules_after("from continuum import workflow, activity, Retry, sleep, wait_signal, activity_info")
    assert not {name for name in loaded if name.split(".")[0] in ("django", "psycopg")}


@pytest.mark.parametrize("name", continuum.__all__)
def test_public_name_resolves(name):
    assert getattr(continuum, name) is not None


@pytest.mark.parametrize("name", [name for name in continuum.__all__ if not name.startswith("__")])
def test_public_function_or_class_is_documented(name):
    assert getattr(continuum, name).__doc__


def test_dir_lists_public_names_before_they_are_used():
    done = subprocess.run(
        [sys.executable, "-c", "import continuum, json; print(json.dumps(dir(continuum)))"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert set(continuum.__all__) <= set(json.loads(done.stdout))


def test_unknown_name_is_an_attribute_error_naming_it():
    with pytest.raises(AttributeError, match="'continuum' has no attribute 'wrokflow'"):
        continuum.wrokflow  # noqa: B018


def test_type_checkers_see_the_names_that_exist_at_run_time():
    assert type_checking_imports() == continuum._HOMES


def test_every_error_is_exported():
    from continuum import exceptions

    assert set(exceptions.__all__) <= set(continuum.__all__)


def test_so_are_those_that_stand_with_what_raises_them_and_what_a_history_is_made_of():
    for module, name in (
        ("starting", "RunPrunedError"),
        ("waiting", "WaitInTransactionError"),
        ("waiting", "WaitTimeoutError"),
        ("models", "Event"),
    ):
        assert getattr(continuum, name) is getattr(import_module(f"continuum.{module}"), name)


def test_the_version_is_said_once():
    assert "version = attr: continuum.__version__" in (ROOT / "setup.cfg").read_text()


def test_the_commands_of_the_readme_exist():
    commands = re.findall(r"^bash (\S+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert ".ci/run" in commands
    for command in commands:
        assert os.access(ROOT / command, os.X_OK), command


# The wheel


def pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "-q", *arguments], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, as building in place leaves files that later builds pick up."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / "continuum", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--no-deps", "-w", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_package(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("continuum/")}
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "continuum/py.typed" in held
    assert held == ours


def test_wheel_holds_nothing_but_the_package_and_its_metadata(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"continuum", f"django_continuum-{continuum.__version__}.dist-info"}


def test_installed_wheel_serves_its_sql_templates_and_a_clean_check(wheel, tmp_path):
    """Installed apart from the sources (the dependencies are this interpreter's), it serves a bare project."""
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    code = f"""
import sys
sys.path[:] = [{str(site)!r}] + [entry for entry in sys.path if entry not in ("", {str(ROOT)!r})]
import continuum
assert continuum.__file__.startswith({str(site)!r}), continuum.__file__
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x",
    USE_TZ=True,
    DATABASES={{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "x"}}}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "continuum"],
)
django.setup()
from django.core.management import call_command, get_commands
call_command("check")
assert get_commands()["continuum_worker"] == "continuum"
for name in continuum.__all__:
    getattr(continuum, name)
from continuum.worker.sql import load
from pathlib import Path
statements = sorted((Path(continuum.__file__).parent / "worker" / "sql").glob("*.sql"))
assert statements
for statement in statements:
    assert load(statement.stem).strip()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
