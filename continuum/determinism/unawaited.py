"""Finds what is made to be awaited and thrown away: a card that nobody charges, a pause that nobody makes.

An effect starts when it is awaited or made a task. Of a coroutine that is neither Python warns, when it gets there; an
effect is dropped without a word.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from continuum.core.code.kinds import Inst, Local, Member, Obj, Value, name_of
from continuum.core.code.reading import Reading, is_ours
from continuum.core.code.resolving import Resolver, module_of
from continuum.core.code.scopes import Scope
from continuum.determinism.matching import Matcher
from continuum.determinism.spots import Spot, shown, spot

__all__ = ["unawaited"]

# Plain functions that make an effect. Those that are ``async def``, such as compensate(), are known by that.
_MAKERS = frozenset(
    {
        ("continuum.core.effects", "sleep"),
        ("continuum.core.effects", "sleep_until"),
        ("continuum.core.effects", "wait_signal"),
        ("continuum.core.lineage", "start_child"),
    }
)
_DEFINITIONS = "continuum.core.definitions"


def unawaited(reading: Reading, matcher: Matcher) -> Iterator[Spot]:
    """Yield where a function throws away what it should have awaited.

    Not what is denied altogether, such as ``asyncio.to_thread()``: an await would not mend it.
    """
    resolver = reading.resolver
    dropped = {id(each) for statement, _ in reading.of(ast.Expr) for each in _dropped(statement.value)}
    for call, scope in reading.of(ast.Call) if dropped else ():
        if id(call) not in dropped or matcher.match(resolver.value(call.func, scope)) is not None:
            continue
        certain = _to_be_awaited(resolver, call, scope)
        if certain is not None:
            yield spot("D704", f"`{shown(call)}`", call, certain)


def _dropped(node: ast.expr) -> Iterator[ast.Call]:
    """Yield the calls whose values go nowhere where an expression is a statement."""
    match node:
        case ast.Call():
            yield node
        case ast.IfExp(body=a, orelse=b):
            yield from _dropped(a)
            yield from _dropped(b)
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from _dropped(part)
        case ast.ListComp(elt=element):
            yield from _dropped(element)


def _to_be_awaited(resolver: Resolver, call: ast.Call, scope: Scope) -> bool | None:
    """Tell whether a call only makes something to be awaited, and whether that is certain; None if not."""
    match call.func:
        case ast.Attribute(value=ast.Call() as made, attr="compensated_by"):  # which gives the effect back
            return _to_be_awaited(resolver, made, scope)
        case ast.Name() | ast.Call() as callee if _with_options(resolver, callee, scope):
            return True
    return _makes(resolver, resolver.value(call.func, scope))


def _with_options(resolver: Resolver, callee: ast.expr, scope: Scope) -> bool:
    """Tell whether something is ``charge_card.options(...)``, or a name for that."""
    if isinstance(callee, ast.Name):
        bindings = scope.find(callee.id)
        if bindings is None or len(bindings) != 1 or bindings[0].how != "value":
            return False
        callee, scope = bindings[0].node, bindings[0].scope
    if not isinstance(callee, ast.Call) or not isinstance(callee.func, ast.Attribute) or callee.func.attr != "options":
        return False
    held = resolver.value(callee.func.value, scope)
    return isinstance(held, Obj) and is_ours(type(held.value))


def _makes(resolver: Resolver, callee: Value | None) -> bool | None:
    match callee:
        case Obj(value=held):
            return True if _made_by(held) else None
        case Inst(cls=type() as cls):  # a parameter whose annotation says that it is an activity
            return True if is_ours(cls) else None
        case Member(owner=owner, raw=raw, of_instance=of_instance):
            if not _made_by(raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw):
                return None
            # Another class may have another one of that name, and so may ``cls`` in a method of this one.
            named = not of_instance and owner is not resolver.owner
            return named or owner.__module__.partition(".")[0] == "asyncio"
        case Local(node=ast.AsyncFunctionDef(decorator_list=[]) as node):
            return None if any(isinstance(each, ast.Yield) for each in ast.walk(node)) else True
    return None


def _made_by(held: Any) -> bool:
    """Tell whether calling something only makes what is to be awaited."""
    while isinstance(held, partial):
        held = held.func
    if is_ours(type(held)):
        return True
    if not isinstance(held, FunctionType | MethodType):
        return False
    if name_of(Obj(held)) in _MAKERS or inspect.iscoroutinefunction(held):
        return True
    # What options() returned has the name and the module of the activity's function, but not its code.
    return isinstance(held, FunctionType) and module_of(held) == _DEFINITIONS and hasattr(held, "bind")
