"""Small projects made of text: modules in a folder of their own, imported, and forgotten at the end."""

from __future__ import annotations

import importlib
import itertools
import linecache
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from continuum.core.registry import Registry

_numbers = itertools.count()


class Project:
    """Modules of a package with a name of its own; ``{here}`` in their text is that name."""

    def __init__(self, folder: Path) -> None:
        self.name = f"project_{next(_numbers)}"
        self.folder = folder / self.name
        self.folder.mkdir()
        (self.folder / "__init__.py").write_text("")

    def module(self, source: str, name: str = "flows") -> ModuleType:
        """Write a module and import it."""
        self.write(source, name)
        return importlib.import_module(f"{self.name}.{name}")

    def write(self, source: str, name: str) -> Path:
        """Write a module that something else may import."""
        path = self.folder / f"{name}.py"
        path.write_text(textwrap.dedent(source).replace("{here}", self.name))
        importlib.invalidate_caches()
        return path


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """Make projects whose workflows and activities are known to nobody else."""
    monkeypatch.setattr("continuum.core.definitions.registry", Registry())
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make() -> Project:
        monkeypatch.setattr("continuum.core.definitions.registry", Registry())
        made.append(Project(tmp_path))
        return made[-1]

    yield make
    names = {each.name for each in made}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    for file in [file for file in linecache.cache if file.startswith(str(tmp_path))]:
        del linecache.cache[file]


@pytest.fixture
def project(make_project):
    """A project, empty yet."""
    return make_project()
