"""The places where a workflow's code asks ``patched()``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from continuum.core.code.callees import callees
from continuum.core.code.kinds import Obj, Value, name_of
from continuum.core.code.reading import Reading
from continuum.core.code.scopes import Scope

__all__ = ["PatchSite", "patch_sites"]

_PATCHED = ("continuum.core.facts", "patched")


class PatchSite(NamedTuple):
    """A call of ``patched()``.

    Attributes:
        name: of the patch; None where it is computed.
        file: where the call is, as Python gives it for the function around it.
        line: of the call.
    """

    name: str | None
    file: str
    line: int


def patch_sites(fn: Callable[..., Any]) -> list[PatchSite]:
    """Return where a workflow, and the functions of the project it can call, ask ``patched()``.

    Args:
        fn: a workflow, or its function.

    Returns:
        list: by file and line; empty where the source cannot be found.
    """
    return sorted(
        {site for each in callees(fn) for site in _sites(each.reading)},
        key=lambda site: (site.file, site.line, site.name or ""),
    )


def _sites(reading: Reading) -> Iterator[PatchSite]:
    resolver = reading.resolver
    for node, scope in reading.of(ast.Call):
        if _is_patched(resolver.value(node.func, scope)):
            argument = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "name"), None)
            yield PatchSite(_text(reading, argument, scope), reading.file, node.lineno)


def _is_patched(callee: Value | None) -> bool:
    return name_of(callee) == _PATCHED


def _text(reading: Reading, argument: ast.expr | None, scope: Scope) -> str | None:
    match argument:
        case ast.Constant(value=str() as name):
            return name
        case ast.Name() | ast.Attribute():
            value = reading.resolver.value(argument, scope)
            if isinstance(value, Obj) and isinstance(value.value, str):
                return value.value
    return None
