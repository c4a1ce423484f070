"""The version hash: a fingerprint of a workflow's code that formatting, comments and unrelated edits do not change."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from hashlib import blake2b
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from continuum.core.code.callees import Reached, callees
from continuum.core.code.constants import Constant, class_constants
from continuum.core.code.reading import Reading, Reference

__all__ = ["source_hash"]

# Fields that say where a node stands or how it was written, or that newer Pythons added without a change of meaning.
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_params", "type_ignores"})

# Workflows share helpers, and so what was found out about them.
_known: WeakKeyDictionary[Reading, tuple[str, tuple[Any, ...]]] = WeakKeyDictionary()


def source_hash(fn: Callable[..., Any]) -> str:
    """Return 16 hexadecimal digits that change when the code that decides for a workflow changes.

    That is the function itself, the functions of the project it can call (not activities and children, whose results
    are in the history), and the constants of modules and classes it reads, as they are written: a limit is as much
    part of a decision as the comparison with it.

    Comments, formatting, docstrings and decorators do not count, nor in which module or order things stand. The digits
    are the same on every Python version and machine, so that workers agree. A function without source (typed at a
    prompt) is hashed by its bytecode. Never raises.
    """
    try:
        reached = callees(fn)
        material = _material(reached) if reached else _bytecode(fn)
    except Exception:  # a helper may be anything; what is left is what the workflow says itself
        try:
            material = repr(_function(callees(fn, project=lambda _: False)[0].node))
        except Exception:
            material = _bytecode(fn)
    return _digest(material)


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _material(reached: tuple[Reached, ...]) -> str:
    numbers: dict[Any, int] = {}
    for each in reached:
        numbers.setdefault(each.fn, len(numbers))
    readings = {each.fn: each.reading for each in reversed(reached)}
    if len(numbers) == 1 and not any(use in numbers or isinstance(use, str) for use in _of(reached[0].reading)[1]):
        return repr(_function(reached[0].node))
    parts = []
    for fn in numbers:
        digest, uses = _of(readings[fn])
        parts.append((digest, [numbers.get(use, use) for use in uses if use in numbers or isinstance(use, str)]))
    return repr(parts)


def _of(reading: Reading) -> tuple[str, tuple[Any, ...]]:
    """Return the digest of a function, and what it refers to in the order of its source: functions and digests."""
    if reading not in _known:
        _known[reading] = _digest(repr(_function(reading.node))), tuple(_uses(reading.references))
    return _known[reading]


def _uses(references: tuple[Reference, ...]) -> Iterator[Any]:
    for reference in references:
        yield from (fn for fn, _ in reference.functions)
        if reference.constant is not None:
            yield from _values(reference.constant, set())
        if reference.cls is not None:
            for each in class_constants(reference.cls):
                yield from _values(each, set())


def _values(constant: Constant, seen: set[tuple[str, str]]) -> Iterator[Any]:
    if (constant.module, constant.name) not in seen:
        seen.add((constant.module, constant.name))
        yield _digest(repr([_canonical(value) for value in constant.values]))
        for each in constant.constants():
            yield from _values(each, seen)


def _bytecode(fn: Any) -> str:
    return f"{fn.__qualname__}|{_code(fn.__code__)}"


def _function(node: Any) -> Any:
    """Return the canonical form of a function without its decorators."""
    kind, fields = _canonical(node)
    return kind, [field for field in fields if field[0] != "decorator_list"]


def _canonical(value: Any) -> Any:
    if isinstance(value, ast.AST):
        fields = []
        for name, child in ast.iter_fields(value):
            if name in _IGNORED_FIELDS or child is None or child == []:
                continue
            if name == "body" and isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                child = _without_docstring(child)
            elif name == "values" and isinstance(value, ast.JoinedStr):
                # Python 3.12 adds an empty string to some format specifications.
                child = [part for part in child if not (isinstance(part, ast.Constant) and part.value == "")]
            fields.append((name, _canonical(child)))
        return type(value).__name__, fields
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return ascii(value)  # repr() knows more characters with every version


def _code(code: CodeType) -> str:
    return f"{code.co_code.hex()}|{[_constant(value) for value in code.co_consts]}|{code.co_names!r}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):
        return f"{sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"{tuple(map(_constant, value))}"
    return ascii(value)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body
