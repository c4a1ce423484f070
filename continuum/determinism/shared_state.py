"""Finds where code changes what outlives the run: variables, containers and objects of modules and classes."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from typing import Any

from continuum.core.code.kinds import Obj
from continuum.core.code.reading import Reading
from continuum.core.code.resolving import Resolver
from continuum.core.code.scopes import Scope
from continuum.determinism.spots import Spot, shown, spot

__all__ = ["changes"]

_CONTAINERS = (list, dict, set, bytearray, deque)
_CHANGING = frozenset(
    (
        *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse"),
        *("add", "discard", "update", "setdefault", "popitem", "subtract", "appendleft", "extendleft", "popleft"),
        *("rotate", "intersection_update", "difference_update", "symmetric_difference_update"),
    )
)
_CHANGING_FUNCTIONS = frozenset({"heappush", "heappop", "heapify", "heapreplace", "heappushpop", "insort"})


def changes(reading: Reading) -> Iterator[Spot]:
    """Yield where a function changes state that other runs and replays share.

    Where it looks first whether something is there already, it may be a memo, which gives everybody the same: that
    cannot be judged.
    """
    resolver = reading.resolver
    asked = _Asked(reading)
    for node, scope in reading.of(ast.Name, ast.Attribute, ast.Subscript, ast.Call):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) if name in scope.function().globals:
                yield spot("D501", f"`global {name}`", node, certain=name not in asked)
            case ast.Attribute(value=base, ctx=ast.Store() | ast.Del()):
                if _shared_object(resolver, base, scope):
                    yield spot("D503", f"setting `{shown(node)}`", node, certain=shown(node) not in asked)
            case ast.Subscript(value=base, ctx=ast.Store() | ast.Del()):
                if _shared_container(resolver, base, scope):
                    yield spot("D502", f"setting `{shown(node)}`", node, certain=shown(base) not in asked)
            case ast.Call(func=ast.Attribute(value=base, attr=method)) if method in _CHANGING:
                if _shared_container(resolver, base, scope):
                    certain = method != "setdefault" and shown(base) not in asked
                    yield spot("D502", f"`{shown(node.func)}()`", node, certain=certain)
            case ast.Call(func=function, args=[first, *_]):
                yield from _by_function(resolver, node, function, first, scope)


class _Asked:
    """What a function asks, found out when somebody wants to know."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._known: frozenset[str] | None = None

    def __contains__(self, text: str) -> bool:
        if self._known is None:
            self._known = frozenset(_asked(self._reading))
        return text in self._known


def _asked(reading: Reading) -> Iterator[str]:
    """Yield what a function asks before it changes something: what it looks into, or compares with None."""
    for node, _ in reading.of(ast.Compare, ast.UnaryOp, ast.Call, ast.Try):
        match node:
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[container]):
                yield shown(container)
            case ast.Compare(
                left=left, ops=[ast.Is() | ast.IsNot() | ast.Eq()], comparators=[ast.Constant(value=None)]
            ):
                yield shown(left)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield shown(operand)
            case ast.Call(func=ast.Attribute(value=container, attr="get")):
                yield shown(container)
            case ast.Call(func=ast.Name(id="hasattr"), args=[held, ast.Constant(value=str() as name)]):
                yield f"{shown(held)}.{name}"
            case ast.Try(body=[ast.Return(value=ast.Subscript(value=container)), *_]):
                yield shown(container)


def _by_function(resolver: Resolver, node: Any, function: Any, first: Any, scope: Scope) -> Iterator[Spot]:
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if name in ("setattr", "delattr"):
        callee = resolver.value(function, scope)
        built_in = isinstance(callee, Obj) and (callee.value is setattr or callee.value is delattr)
        if built_in and _shared_object(resolver, first, scope):
            yield spot("D503", f"`{shown(node)}`", node)
    elif name in _CHANGING_FUNCTIONS and _shared_container(resolver, first, scope):
        yield spot("D502", f"`{shown(node)}`", node)


def _shared_container(resolver: Resolver, base: ast.expr, scope: Scope) -> bool:
    held = resolver.value(base, scope)
    return isinstance(held, Obj) and isinstance(held.value, _CONTAINERS)


def _shared_object(resolver: Resolver, base: ast.expr, scope: Scope) -> bool:
    return isinstance(resolver.value(base, scope), Obj)
