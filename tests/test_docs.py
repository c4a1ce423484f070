"""The documentation says what the code does: its Python runs, its commands, links and defaults exist."""

import ast
import inspect
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
from django.core.management import get_commands, load_command_class

from continuum import conf
from tests.pages import PAGES, ROOT, RUN, Block, blocks, module_of, perform, scenarios
from tests.workers import worker

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = [block for page in PAGES for block in blocks(page, "python")]
WITHOUT_PYTHON = ("README", "quickstart", "operations", "releasing", "upgrading")
GUIDES = [page for page in PAGES if page.stem not in WITHOUT_PYTHON]
TESTING = ROOT / "docs" / "testing.md"
EXAMPLES = [
    pytest.param(
        name, marks=[pytest.mark.django_db(transaction=True)] if "transactional_db" in fixtures else [], id=name
    )
    for block in blocks(TESTING, "python")
    if not block.marks
    for name, fixtures in re.findall(r"^def (test_\w+)\((.*)\):", block.text, re.MULTILINE)
]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_is_python(block):
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_defines_can_be_defined(page):
    """Blocks of a page build on each other; those that are marked need a worker or a project around them."""
    module_of(page)


def test_scenarios_do_what_their_pages_promise(transactional_db):
    """One worker for all pages. Scenarios of a page build on each other as well."""
    for page in PAGES:
        module_of(page)  # before the worker starts, as it tells the cluster which workflows it has
    broken = []
    with worker(threads=8):
        for block in (block for page in PAGES for block in scenarios(page)):
            try:
                assert perform(block, module_of(block.page).__dict__), "it promises nothing"
            except Exception as error:
                broken.append(f"{block}: {type(error).__name__}: {error}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_test_that_a_page_shows_passes(name, request):
    test = vars(module_of(TESTING))[name]
    test(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(test).parameters})


def test_the_environments_of_the_checklist_exist():
    named = set(re.findall(r"`tox -e (\w+)", (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")))
    defined = set(re.findall(r"^\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE))
    assert named >= {"format", "check", "test", "cluster", "paranoid", "seeds", "audit"}
    assert named <= defined


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guide_has_a_scenario(page):
    assert scenarios(page)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("1 + 1  # 3", "page.md:2: promised 3, got 2"),
        ("[True]  # [1.0]", None),
        ("1.0  # 1", "promised 1, got 1.0"),
        ("int('a')  # raises KeyError", "raised ValueError"),
        ("int('a')  # raises ValueError: no such number", "the message is invalid literal"),
        ("int('1')  # raises ValueError", "did not raise ValueError"),
        ("x = 1  # 1", "only an expression"),
    ],
)
def test_a_promise_that_is_not_kept_is_noticed(statement, complaint, tmp_path):
    block = Block(tmp_path / "page.md", 2, "python", RUN, statement + "\n")
    if complaint is None:
        assert perform(block, {}) == 1
        return
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        perform(block, {})


def test_the_readmes_workflow_runs_as_it_says(transactional_db, subprocess_environment, tmp_path, monkeypatch):
    definition, usage = (block.text for block in blocks(ROOT / "README.md", "python")[:2])
    (tmp_path / "readme_flow.py").write_text(definition)
    (tmp_path / "readme_settings.py").write_text(
        'from tests.settings import *  # noqa: F403\nCONTINUUM = {"WORKFLOW_MODULES": ["readme_flow"]}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    worker = subprocess.Popen(
        [sys.executable, "-m", "django", "continuum_worker"],
        cwd=ROOT,
        env=subprocess_environment
        | {"DJANGO_SETTINGS_MODULE": "readme_settings", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.DEVNULL,
    )
    try:
        *steps, last = usage.strip().splitlines()
        names = vars(import_module("readme_flow")).copy()
        exec("\n".join(steps), names)
        call, promised = last.split("  # ")
        assert eval(call.replace("timeout=10", "timeout=60"), names) == ast.literal_eval(promised)
    finally:
        worker.terminate()
        worker.wait(timeout=30)


def test_the_pages_have_python_to_try():
    assert len(PYTHON) >= 8


def test_the_settings_in_the_table_have_an_effect():
    code = "".join(path.read_text() for path in (ROOT / "continuum").rglob("*.py") if path.name != "conf.py")
    keys = re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE)
    assert [key for key in keys if not re.search(rf"settings\.{key}\b|\"{key}\"", code)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`?\b((?:example_project|\.ci|docs)/[\w./-]+)", page.read_text(encoding="utf-8"))
    made_by_the_demo = {"example_project/.data"}
    assert [name for name in {n.rstrip(".") for n in named} - made_by_the_demo if not (ROOT / name).exists()] == []


def test_every_page_is_linked_from_the_readme():
    assert [page.name for page in PAGES if page.name != "README.md" and f"docs/{page.name}" not in README] == []


def test_worker_options_are_those_of_the_command():
    parser = load_command_class(get_commands()["continuum_worker"], "continuum_worker").create_parser("", "")
    real = {option for action in parser._actions for option in action.option_strings}
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("## When a worker dies")[0]
    named = set(re.findall(r"`(--[a-z-]+)", section))
    assert named
    assert named <= real


def test_the_settings_table_gives_the_defaults():
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", README, re.MULTILINE))
    assert {"LEASE_TTL", "POLL_INTERVAL", "CONCURRENCY"} <= set(table)
    for key, default in table.items():
        value = ast.literal_eval(default)
        assert conf.OPTIONS[key].default == (tuple(value) if isinstance(value, list) else value), key


def test_supported_pythons_are_those_of_the_package():
    metadata = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    pythons = re.findall(r"Programming Language :: Python :: (3\.\d+)$", metadata, re.MULTILINE)
    assert f"Python {pythons[0]} to {pythons[-1]}" in README


def test_supported_djangos_are_those_that_are_tested():
    djangos = re.findall(r"^    django(\d)(\d): ", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"Django {'.'.join(djangos[0])} to {'.'.join(djangos[-1])}" in README
