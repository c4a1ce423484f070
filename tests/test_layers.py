"""Imports go down, never up; and the other rules about the shape of the package that a program can check."""

import ast
import sys
from pathlib import Path

import pytest

import continuum

PACKAGE = Path(continuum.__file__).parent

# From the bottom up. A module may import what stands in its own layer or further down. The most specific entry counts.
LAYERS = [
    ["continuum.exceptions", "continuum.ids"],
    ["continuum.values"],
    ["continuum.core"],
    [
        "continuum.conf",
        "continuum.discovery",
        "continuum.moments",
        "continuum.sourcefiles",
        "continuum.telemetry",
        "continuum.wording",
    ],
    ["continuum.determinism"],
    [
        "continuum.fields",
        "continuum.models",
        "continuum.references",
        "continuum.worker.partitions",
        "continuum.worker.sql",
    ],
    ["continuum.migrations", "continuum.worker"],
    [
        "continuum.along",
        "continuum.arguments",
        "continuum.audit",
        "continuum.client",
        "continuum.declared",
        "continuum.describing",
        "continuum.health",
        "continuum.hint_sender",
        "continuum.hints",
        "continuum.labelling",
        "continuum.listening",
        "continuum.overview",
        "continuum.redaction",
        "continuum.reopening",
        "continuum.retention",
        "continuum.search",
        "continuum.starting",
        "continuum.statements",
        "continuum.surroundings",
        "continuum.timeline",
        "continuum.upkeep",
        "continuum.waiting",
    ],
    [
        "continuum",
        "continuum.admin",
        "continuum.apps",
        "continuum.checks",
        "continuum.contrib",
        "continuum.management",
        "continuum.testing",
    ],
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# What each of these may import beside the standard library and lower layers: nothing.
PURE = ("continuum.exceptions", "continuum.ids", "continuum.values", "continuum.core")

STANDARD_LIBRARY = set(sys.stdlib_module_names)
LONGEST = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def rank(module: str) -> int:
    """Return the layer of a module, found by its longest listed prefix; the bare package stands for itself only."""
    name = module
    while name not in RANKS or (name == "continuum" and module != "continuum"):
        name = name.rpartition(".")[0]
        if not name:
            pytest.fail(f"{module} stands in no layer: add it to LAYERS in {Path(__file__).name}")
    return RANKS[name]


def nodes_run_at_import(tree: ast.AST):
    """Yield the nodes that run when a module is imported: no bodies of functions, no TYPE_CHECKING blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from nodes_run_at_import(node)


def imports(module: str, *, everywhere: bool) -> set[str]:
    """Return the absolute names of the modules that a module imports, at import time or everywhere in its code."""
    tree = ast.parse(MODULES[module].read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else nodes_run_at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}" if base else package
            # `from continuum import values` imports a module, `from continuum.values import encode` does not.
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in MODULES else home_of(base, alias.name))
    return found


def home_of(module: str, name: str) -> str:
    """Return where a name comes from: public names of the bare package live in the modules it loads them from."""
    return continuum._HOMES.get(name, module) if module == "continuum" else module


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "continuum"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    upwards = {name for name in ours(imports(module, everywhere=module.startswith(PURE))) if rank(name) > rank(module)}
    assert not upwards, f"{module} imports from above: {', '.join(sorted(upwards))}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(PURE)])
def test_the_core_needs_neither_django_nor_a_database(module):
    """At import time nothing foreign at all; ``core`` not even inside its functions."""
    everything = imports(module, everywhere=module.startswith("continuum.core"))
    foreign = {name.split(".")[0] for name in everything - ours(everything)} - STANDARD_LIBRARY
    assert not foreign, f"{module} imports {', '.join(sorted(foreign))}"


def test_no_module_bears_the_name_of_a_public_function():
    """Importing it would put the module where the package has its function."""
    direct = {name.split(".")[1] for name in MODULES if name.count(".") == 1}
    assert not direct & set(continuum.__all__)


@pytest.mark.parametrize("module", [name for name in MODULES if ".migrations" not in name])
def test_no_module_is_too_long_to_have_one_job(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_values_are_never_pickled_and_code_is_never_made_from_text(module):
    tree = ast.parse(MODULES[module].read_text())
    called = {getattr(node.func, "id", None) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    imported = {name.split(".")[0] for name in imports(module, everywhere=True)}
    assert not called & {"eval", "exec"}
    assert not imported & {"pickle", "marshal", "shelve", "dill"}


# The rules themselves are tested, as a rule that finds nothing would pass for ever.


def test_a_module_of_a_package_stands_in_the_layer_of_its_package():
    assert rank("continuum.core.execution") == rank("continuum.core") < rank("continuum.worker.engine")
    assert rank("continuum.worker.sql") < rank("continuum.worker")


def test_lazy_names_count_where_they_live():
    assert home_of("continuum", "start") == "continuum.client"
    assert home_of("continuum.client", "start") == "continuum.client"


def test_imports_are_found(tmp_path, monkeypatch):
    (tmp_path / "engine.py").write_text(
        "from __future__ import annotations\n"
        "import a.b as c\n"
        "from continuum import values, start\n"
        "from . import journal\n"
        "from ..core import loop\n"
        "try:\n    import g\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import d\n"
        "def f():\n    import e\n"
        "class K:\n    import h\n"
    )
    monkeypatch.setitem(MODULES, "continuum.worker.engine", tmp_path / "engine.py")
    monkeypatch.setitem(MODULES, "continuum.worker.journal", tmp_path)
    monkeypatch.setitem(MODULES, "continuum.core.loop", tmp_path)
    at_import = {
        "__future__",
        "a.b",
        "g",
        "h",
        "continuum.values",
        "continuum.client",
        "continuum.worker.journal",
        "continuum.core.loop",
    }
    assert imports("continuum.worker.engine", everywhere=False) == at_import
    assert imports("continuum.worker.engine", everywhere=True) == at_import | {"d", "e"}
