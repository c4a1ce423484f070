"""Finds where code relies on the order of sets, or on how an object is shown, which differ from process to process."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator, MutableSet, Set

from continuum.core.code.kinds import Inst, Obj, Value
from continuum.core.code.reading import Reading
from continuum.core.code.resolving import Resolver
from continuum.core.code.scopes import Scope
from continuum.determinism.matching import is_project_object
from continuum.determinism.spots import Spot, shown, spot

__all__ = ["orders"]

# Calls and sets first: they say of comprehensions inside them that their order does not count.
_ORDERED = (
    *(ast.Call, ast.SetComp, ast.ListComp, ast.DictComp, ast.GeneratorExp, ast.For, ast.YieldFrom, ast.Starred),
    *(ast.Assign, ast.FormattedValue),
)
_SETS = (set, frozenset, Set, MutableSet)
# These take what they are given in its order; what the others make of a set does not depend on it.
_KEEP_ORDER = frozenset({"list", "tuple", "enumerate", "iter", "zip", "map", "filter", "dict"})
_ORDER_IS_LOST = frozenset({"sorted", "set", "frozenset", "sum", "any", "all", "min", "max", "len"})
_KEEP_ORDER_METHODS = frozenset({"join", "extend", "fromkeys", "extendleft"})
# Their hashes are the same in every process, and so is the order that follows from them and from how a set was filled.
_STEADY = (int, float, complex, type(None))


def orders(reading: Reading) -> Iterator[Spot]:
    """Yield where a function depends on the order of a set, or on the address of an object."""
    resolver = reading.resolver
    careless: set[int] = set()  # comprehensions whose order is lost again
    for node, scope in reading.of(*_ORDERED):
        match node:
            case ast.Call():
                yield from _called(resolver, node, scope, careless)
            case ast.SetComp() if not _awaits(node):
                careless.add(id(node))
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                pass
            case ast.For(iter=iterable):
                yield from _iterated(resolver, iterable, scope)
            case ast.YieldFrom(value=iterable) | ast.Starred(value=iterable, ctx=ast.Load()):
                yield from _iterated(resolver, iterable, scope)
            case ast.Assign(targets=[ast.Tuple(elts=targets) | ast.List(elts=targets)], value=value):
                if len(targets) > 1:
                    yield from _iterated(resolver, value, scope)
            case ast.FormattedValue(value=value):
                yield from _displayed(resolver, value, scope)
        for generator in getattr(node, "generators", ()) if id(node) not in careless else ():
            # The scope of inner iterables is the comprehension's own; sets made there are rare, and not missed much.
            yield from _iterated(resolver, generator.iter, scope)


def _called(resolver: Resolver, node: ast.Call, scope: Scope, careless: set[int]) -> Iterator[Spot]:
    callee = resolver.value(node.func, scope)
    name = _builtin(callee)
    if name in _ORDER_IS_LOST:
        careless.update(
            id(each)
            for each in node.args
            if isinstance(each, ast.GeneratorExp | ast.ListComp | ast.Call) and not _awaits(each)
        )
    elif name in _KEEP_ORDER and id(node) not in careless:
        for argument in node.args:
            if not isinstance(argument, ast.Starred):
                yield from _iterated(resolver, argument, scope)
    elif name in ("repr", "str", "format", "ascii") and node.args:
        yield from _displayed(resolver, node.args[0], scope)
    elif isinstance(node.func, ast.Attribute):
        if node.func.attr in _KEEP_ORDER_METHODS and len(node.args) >= 1:
            yield from _iterated(resolver, node.args[0], scope)
        elif node.func.attr == "pop" and not node.args:
            yield from _iterated(resolver, node.func.value, scope)


def _builtin(callee: Value | None) -> str:
    value = callee.value if isinstance(callee, Obj) else None
    return value.__name__ if getattr(value, "__module__", None) == "builtins" and hasattr(value, "__name__") else ""


def _iterated(resolver: Resolver, node: ast.expr, scope: Scope) -> Iterator[Spot]:
    held = resolver.value(node, scope)
    element = held.items[0] if isinstance(held, Inst) and held.items else None
    if isinstance(held, Obj) and isinstance(held.value, set | frozenset):
        kinds = {type(each) for each in held.value}
        if any(not issubclass(kind, _STEADY) for kind in kinds) and len(held.value) > 1:
            yield spot("D601", f"the set `{shown(node)}`", node)
    elif isinstance(held, Inst) and isinstance(held.cls, type) and held.cls in _SETS:
        kind = element.cls if isinstance(element, Inst) and isinstance(element.cls, type) else None
        if kind is not None and issubclass(kind, asyncio.Future):
            yield spot("D602", f"the set of tasks `{shown(node)}`", node)
        elif (kind is None or not issubclass(kind, _STEADY)) and not (isinstance(node, ast.Set) and len(node.elts) < 2):
            yield spot("D601", f"the set `{shown(node)}`", node, certain=kind is not None and kind is not object)


def _displayed(resolver: Resolver, node: ast.expr, scope: Scope) -> Iterator[Spot]:
    held = resolver.value(node, scope)
    cls = held.cls if isinstance(held, Inst) else None
    if isinstance(cls, type) and is_project_object(cls):
        bare = all(getattr(cls, name) is getattr(object, name) for name in ("__repr__", "__str__", "__format__"))
        if bare:
            yield spot("D104", f"the text of `{shown(node)}`, which has no __repr__,", node)


def _awaits(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Await) for each in ast.walk(node))
