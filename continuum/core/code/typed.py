"""Type annotations, read as what an instance of them is."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, UnionType
from typing import Any, Union

from continuum.core.code.kinds import Inst, Items, Obj, Value
from continuum.core.code.sources import is_project_file, source_of

__all__ = ["class_nodes", "declared_attribute", "in_class", "instance_of", "return_annotation", "typed"]


def typed(node: ast.expr, look: Callable[[str], Any]) -> Value | None:
    """Return an instance of what an annotation names, or None where it does not say.

    Args:
        node: the annotation.
        look: finds the object a plain name stands for.
    """
    match node:
        case ast.Constant(value=str() as text):
            try:
                return typed(ast.parse(text, mode="eval").body, look)
            except SyntaxError:
                return None
        case ast.Name() | ast.Attribute():
            return instance_of(_look_up(node, look))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            sides = [side for side in (left, right) if not (isinstance(side, ast.Constant) and side.value is None)]
            return typed(sides[0], look) if len(sides) == 1 else None
        case ast.Subscript(value=base, slice=inner):
            return _generic(_look_up(base, look), inner, look)
    return None


def _generic(base: Any, inner: ast.expr, look: Callable[[str], Any]) -> Value | None:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    name = getattr(base, "_name", None) or getattr(base, "__name__", "")
    if name == "Optional" or name in ("Annotated", "Final", "ClassVar", "Awaitable"):
        return typed(parts[0], look)
    if name in ("type", "Type"):
        held = typed(parts[0], look)
        return Obj(held.cls) if isinstance(held, Inst) else None
    made = instance_of(base)
    if name in ("tuple", "Tuple") and not (len(parts) == 2 and isinstance(parts[1], ast.Constant)):
        return Items(tuple(typed(part, look) for part in parts))
    return Inst(made.cls, tuple(typed(part, look) for part in parts)) if isinstance(made, Inst) else None


def declared_attribute(cls: type, attr: str) -> Value | None:
    """Return what an annotation in the body of a class of the project says of an attribute of its instances."""
    for each in cls.__mro__:
        names = vars(sys.modules.get(each.__module__, builtins))
        for definition in class_nodes(each):
            for statement in definition.body:
                match statement:
                    case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if name == attr:
                        return typed(
                            annotation, lambda name, names=names: names.get(name, getattr(builtins, name, None))
                        )
    return None


def class_nodes(cls: type) -> list[ast.ClassDef]:
    """Return the definitions of a class of the project; none where its source cannot be found."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not is_project_file(file):
        return []
    source = source_of(file, vars(module))
    return [] if source is None else source.classes.get(cls.__qualname__, [])


def _look_up(node: ast.expr, look: Callable[[str], Any]) -> Any:
    if isinstance(node, ast.Name):
        return look(node.id)
    if isinstance(node, ast.Attribute):
        base = _look_up(node.value, look)
        return None if base is None else inspect.getattr_static(base, node.attr, None)
    return None


def instance_of(kind: Any) -> Value | None:
    """Return an instance of an annotation that is an object."""
    origin = getattr(kind, "__origin__", kind)
    if origin in (Union, UnionType):
        sides = [side for side in getattr(kind, "__args__", ()) if side is not type(None)]
        return instance_of(sides[0]) if len(sides) == 1 else None
    return Inst(origin) if isinstance(origin, type) and origin is not object else None


def return_annotation(fn: FunctionType) -> Any:
    """Return the return annotation of a function as an object, or None where it cannot be had."""
    annotation = fn.__annotations__.get("return")
    return fn.__globals__.get(annotation) if isinstance(annotation, str) else annotation


def in_class(cls: type, name: str, default: Any = None) -> Any:
    """Return an attribute as it stands in a class, or in its metaclass, without any descriptor at work."""
    for each in (*cls.__mro__, *type(cls).__mro__):
        if name in each.__dict__:
            return each.__dict__[name]
    return default
