"""Source code as syntax trees: of files, of functions, of what a module's names are bound to."""

from __future__ import annotations

import ast
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from importlib.machinery import PathFinder
from types import CodeType, FunctionType
from typing import Any

__all__ = ["OURS", "FunctionNode", "Source", "function_node", "imported", "is_project_file", "source_of"]

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

#: Where this package is installed.
OURS = os.path.abspath(f"{__file__}/../../..") + os.sep
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Source:
    """A parsed file.

    Attributes:
        lines: its text.
        functions: the functions that begin in a line, decorators included, by line and name.
        bindings: the statements that bind a name of the module, by name.
        classes: the classes, by qualified name.
    """

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.functions: dict[tuple[int, str], list[FunctionNode]] = {}
        self.bindings: dict[str, list[ast.stmt]] = {}
        self.classes: dict[str, list[ast.ClassDef]] = {}
        self._tree = tree = ast.parse("".join(lines))
        for statement in _flat(tree.body):
            for name in _bound(statement):
                self.bindings.setdefault(name, []).append(statement)
        self._index(tree.body, "")

    def _index(self, body: Iterable[ast.AST], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                self.functions.setdefault((line, node.name), []).append(node)
                self._index(node.body, f"{prefix}{node.name}.<locals>.")
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(prefix + node.name, []).append(node)
                self._index(node.body, f"{prefix}{node.name}.")
            else:
                for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                    self._index(_nodes(getattr(node, field, ())), prefix)

    @cached_property
    def lambdas(self) -> dict[int, list[FunctionNode]]:
        """The lambdas that begin in a line."""
        found: dict[int, list[FunctionNode]] = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Lambda):
                found.setdefault(node.lineno, []).append(node)
        return found


def _nodes(held: Any) -> Any:
    return held if isinstance(held, list) else ()  # the body of a conditional expression is no list


_sources: dict[str, Source | None] = {}


def source_of(file: str, module_globals: Mapping[str, Any] | None = None) -> Source | None:
    """Return a file, parsed; None where there is none, or it is no Python. Parsed anew when it has changed."""
    linecache.checkcache(file)
    lines = linecache.getlines(file, module_globals)  # type: ignore[arg-type]
    known = _sources.get(file)
    if known is not None and known.lines is lines:
        return known
    try:
        source = Source(lines) if lines else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        source = None
    _sources[file] = source
    return source


def function_node(fn: FunctionType) -> FunctionNode | None:
    """Return the syntax tree of a function, with the line numbers of its file, or None where it cannot be found."""
    code = fn.__code__
    source = source_of(code.co_filename, fn.__globals__)
    if source is None:
        return None
    if code.co_name == "<lambda>":
        found = source.lambdas.get(code.co_firstlineno, [])
    else:
        found = source.functions.get((code.co_firstlineno, code.co_name), [])
    if len(found) > 1:
        found = [node for node in found if _holds(node, code)]
    return found[0] if len(found) == 1 else None


def _holds(node: FunctionNode, code: CodeType) -> bool:
    # Several functions in one line: columns tell them apart. The innermost around the code is the one whose own
    # body begins where the code's last instruction returns from.
    body = node.body if isinstance(node, ast.Lambda) else node
    spots = [
        (line, column) for line, _, column, _ in code.co_positions() if line is not None and column not in (None, 0)
    ]
    return bool(spots) and min(spots) == (body.lineno, body.col_offset)  # type: ignore[type-var]


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those inside if, try, with and loops included."""
    for statement in body:
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _flat(_nodes(getattr(statement, field, ())))
            for handler in getattr(statement, "handlers", ()):
                yield from _flat(handler.body)


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id


@cache
def is_project_file(file: str) -> bool:
    """Tell whether a file belongs to the project: neither the standard library's, nor installed, nor ours."""
    if file.startswith("<") or not file:  # frozen, generated, or typed at a prompt
        return False
    path = os.path.abspath(file)
    if path.startswith(OURS) or not _INSTALLED.isdisjoint(path.split(os.sep)):
        return False
    return not path.startswith(_standard_library())


@cache
def _standard_library() -> tuple[str, ...]:
    return tuple({sysconfig.get_path(key) + os.sep for key in ("stdlib", "platstdlib")})


@cache
def _is_project_package(name: str) -> bool:
    """Tell whether a top-level module that need not be loaded belongs to the project."""
    if name in sys.stdlib_module_names or name == "continuum":
        return False
    try:
        spec = PathFinder.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return bool(places) and all(is_project_file(place) for place in places)


def imported(name: str) -> Any:
    """Return a module that a function imports when it is called, or None where it cannot be had.

    A module of the project is imported, as what it holds must not depend on who has been here before. Of others, those
    that are loaded are returned: nobody needs to look into them.
    """
    module = sys.modules.get(name)
    if module is None and _is_project_package(name.partition(".")[0]):
        try:
            __import__(name)
        except Exception:
            return None
        module = sys.modules.get(name)
    return module
