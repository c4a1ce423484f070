"""Finds handlers that swallow what stops or cancels a run."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from continuum.core.code.kinds import Obj, name_of
from continuum.core.code.reading import Reading
from continuum.core.code.resolving import Resolver
from continuum.core.code.scopes import Scope
from continuum.determinism.spots import Spot, shown, spot

__all__ = ["swallowing"]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_WAITING = (ast.Await, ast.AsyncFor, ast.AsyncWith)


def swallowing(reading: Reading) -> Iterator[Spot]:
    """Yield where a function catches everything, or cancellation, and does not raise it again.

    Only around what waits: nothing else can be cancelled.
    """
    resolver = reading.resolver
    for node, scope in reading.of(ast.Try, ast.TryStar, ast.With, ast.AsyncWith):
        match node:
            case ast.Try(body=body) | ast.TryStar(body=body) if _has(body, _WAITING):
                for handler in node.handlers:
                    broken = _broken_rule(resolver, handler.type, scope)
                    if broken and not _raises(resolver, handler.body, scope):
                        kind = f" {shown(handler.type)}" if handler.type is not None else ""
                        yield spot(broken, f"`except{kind}:` without `raise`", handler)
                for left in _leaving(node.finalbody):
                    yield spot("D701", f"`{type(left).__name__.lower()}` in `finally`", left)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body) if _has(body, _WAITING):
                for item in items:
                    yield from _suppressing(resolver, item.context_expr, scope)


def _broken_rule(resolver: Resolver, kind: ast.expr | None, scope: Scope) -> str:
    if kind is None:
        return "D701"
    if isinstance(kind, ast.Tuple):
        found = [_broken_rule(resolver, each, scope) for each in kind.elts]
        return min(filter(None, found), default="")
    value = resolver.value(kind, scope)
    caught = value.value if isinstance(value, Obj) else None
    return {BaseException: "D701", asyncio.CancelledError: "D702"}.get(caught, "") if isinstance(caught, type) else ""


def _suppressing(resolver: Resolver, node: ast.expr, scope: Scope) -> Iterator[Spot]:
    if isinstance(node, ast.Call):
        callee = resolver.value(node.func, scope)
        if isinstance(callee, Obj) and callee.value is contextlib.suppress:
            for argument in node.args:
                if broken := _broken_rule(resolver, argument, scope):
                    yield spot(broken, f"`{shown(node)}`", node)


def _raises(resolver: Resolver, body: list[ast.stmt], scope: Scope) -> bool:
    for node in _own(body):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call):
            callee = resolver.value(node.func, scope)
            if name_of(callee) == ("continuum.core.lineage", "continue_as_new"):
                return True  # continue_as_new() never returns
    return False


def _has(body: list[ast.stmt], kinds: Any) -> bool:
    return any(isinstance(node, kinds) for node in _own(body))


def _leaving(body: list[ast.stmt], in_loop: bool = False) -> Iterator[ast.stmt]:
    """Yield what leaves a ``finally`` block, and drops the exception that was on its way."""
    for statement in body:
        if isinstance(statement, ast.Return) or (isinstance(statement, ast.Break | ast.Continue) and not in_loop):
            yield statement
        elif not isinstance(statement, _FUNCTIONS):
            loops = in_loop or isinstance(statement, ast.For | ast.AsyncFor | ast.While)
            for field in ("body", "orelse", "finalbody"):
                yield from _leaving(getattr(statement, field, []), loops if field == "body" else in_loop)
            for handler in getattr(statement, "handlers", ()):
                yield from _leaving(handler.body, in_loop)


def _own(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes of statements, without those of functions defined in them."""
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _FUNCTIONS):
            stack.extend(ast.iter_child_nodes(node))
