"""The version hash: a fingerprint of a workflow's source that formatting and comments do not change."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from hashlib import blake2b
from types import CodeType
from typing import Any

__all__ = ["source_hash"]

# Fields that say where a node stands or how it was written, or that newer Pythons added without a change of meaning.
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_params", "type_ignores"})


def source_hash(fn: Callable[..., Any]) -> str:
    """Return 16 hexadecimal digits that change when the function's code changes.

    Comments, formatting, docstrings and decorators do not count. The digits are the same on every Python version,
    so that workers on different Pythons agree. A function without source (typed at a prompt) is hashed by its
    bytecode.
    """
    try:
        source = inspect.getsource(fn)
        if source[:1].isspace():
            # An indented function becomes the body of something, so that no string in it has to be touched.
            source = f"if 1:\n{source}"
        node: Any = ast.parse(source).body[0]
        if isinstance(node, ast.If):
            node = node.body[0]
        if not isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
            raise SyntaxError
    except (OSError, TypeError, SyntaxError, IndexError):
        material = f"{fn.__qualname__}|{_code(fn.__code__)}"
    else:
        node.decorator_list = []
        material = repr(_canonical(node))
    return blake2b(material.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


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
