"""The constants of modules, as their source says: not what they hold now, which may depend on who was here before."""

from __future__ import annotations

import ast
import inspect
import sys
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from enum import EnumType
from types import ModuleType
from typing import Any, NamedTuple

from continuum.core.code.resolving import absolute_name
from continuum.core.code.sources import imported, is_project_file, source_of
from continuum.core.code.typed import class_nodes

__all__ = ["Constant", "class_constants", "constant"]

_PLAIN = (EnumType, ABCMeta)
_FARTHEST = 10  # modules that a name is passed on through


class Constant(NamedTuple):
    """A name of a module that is bound by assignments.

    Attributes:
        module: the module it is defined in.
        name: its name there.
        values: the expressions assigned to it; several where it depends on a condition.
        names: what the module's names stand for.
    """

    module: str
    name: str
    values: tuple[ast.expr, ...]
    names: Mapping[str, Any]

    def parts(self) -> Iterator[tuple[int, Any]]:
        """Yield line and object of what it lists by name, such as the functions of a table of handlers."""
        for value in self.values:
            for node in _listed(value):
                found = _look_up(node, self.names)
                if found is not None:
                    yield node.lineno, found

    def constants(self) -> Iterator[Constant]:
        """Yield the constants of modules that its own value is made of."""
        for value in self.values:
            for node in ast.walk(value):
                if isinstance(node, ast.Name):
                    held = self.names.get(node.id)
                    if not callable(held) and not isinstance(held, ModuleType):
                        found = constant(self.names, node.id)
                        if found is not None:
                            yield found


def class_constants(cls: type, attr: str | None = None) -> Iterator[Constant]:
    """Yield what the bodies of a class of the project, and of its bases, assign: members, defaults, limits.

    Args:
        cls: the class.
        attr: the attribute that is read. Without, all of them, if it is a plain class: those with a metaclass of their
            own, such as models, are more than what a workflow reads of them.
    """
    if attr is not None or type(cls) is type or issubclass(type(cls), _PLAIN):
        for each in cls.__mro__:
            names = vars(sys.modules.get(each.__module__, ast))
            for definition in class_nodes(each):
                for statement in definition.body:
                    if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                        name = getattr(target, "id", "")
                        if attr in (None, name):
                            yield Constant(
                                each.__module__, f"{each.__qualname__}.{name}", (target, statement.value), names
                            )


def constant(names: Mapping[str, Any], name: str) -> Constant | None:
    """Return the project's constant that a module knows by that name, wherever it was imported from, or None."""
    for _ in range(_FARTHEST):
        file = names.get("__file__")
        source = source_of(file, names) if isinstance(file, str) and is_project_file(file) else None
        statements: list[Any] = source.bindings.get(name, []) if source is not None else []
        if not statements and source is not None:
            statements = [each for each in source.bindings.get("*", []) if name in _names_of(each, names)]
        if not statements:
            return None
        if isinstance(statements[0], ast.ImportFrom):
            passed = {each.asname or each.name: each.name for each in statements[0].names}
            names, name = _names_of(statements[0], names), passed.get(name, name)
            continue
        assigned = [s for s in statements if isinstance(s, ast.Assign | ast.AnnAssign | ast.AugAssign)]
        values = tuple(statement.value for statement in assigned if statement.value is not None)
        return Constant(names.get("__name__", ""), name, values, names) if values else None
    return None


def _names_of(node: ast.ImportFrom, names: Mapping[str, Any]) -> Mapping[str, Any]:
    module = imported(absolute_name(node, names))
    return vars(module) if isinstance(module, ModuleType) else {}


def _listed(value: ast.expr) -> Iterator[ast.Name | ast.Attribute]:
    match value:
        case ast.Name() | ast.Attribute():
            yield value
        case ast.Dict(values=elements) | ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            for element in elements:
                yield from _listed(element)
        case ast.Call(args=arguments, keywords=keywords):
            for element in [*arguments, *(keyword.value for keyword in keywords)]:
                yield from _listed(element)


def _look_up(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _look_up(node.value, names)
        if isinstance(base, ModuleType):
            return vars(base).get(node.attr) or sys.modules.get(f"{base.__name__}.{node.attr}")
        return None if base is None else inspect.getattr_static(base, node.attr, None)
    return None
