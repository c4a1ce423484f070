"""What an expression in a function stands for, found out without running it.

Names are looked up where Python would: locals through what binds them, the others as real objects in closures, module
and builtins. Of instances only the class is known: from an annotation, a display, or the call that makes them. Where
two bindings of a local name disagree, nothing is known: better no answer than a wrong one.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import logging
import sys
from collections.abc import Callable, Mapping
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

from continuum.core.code.kinds import Inst, Items, Local, Member, Named, Obj, Super, Value, name_of, same
from continuum.core.code.scopes import Binding, Scope, ScopeMap
from continuum.core.code.sources import FunctionNode, function_node, imported, is_project_file
from continuum.core.code.typed import declared_attribute, in_class, instance_of, return_annotation, typed

__all__ = ["Resolver", "absolute_name", "module_of"]

_MISSING = object()
_DISPLAYS: dict[type[ast.AST], type] = {
    ast.SetComp: set,
    ast.Dict: dict,
    ast.DictComp: dict,
    ast.ListComp: list,
    ast.JoinedStr: str,
}
_SET_OPERATORS = (ast.BitOr, ast.BitAnd, ast.BitXor, ast.Sub)
_COLLECTORS = (set, frozenset, list, sorted)
_SET_METHODS = frozenset({"copy", "union", "intersection", "difference", "symmetric_difference"})
# What some functions give that have no annotations.
_TOLD: dict[Any, Callable[[], Value]] = {
    ("logging", "getLogger"): lambda: Inst(logging.Logger),
    ("_asyncio", "get_running_loop"): lambda: Inst(asyncio.BaseEventLoop),
    ("_asyncio", "get_event_loop"): lambda: Inst(asyncio.BaseEventLoop),
    ("asyncio.tasks", "create_task"): lambda: Inst(asyncio.Task),
    ("asyncio.tasks", "ensure_future"): lambda: Inst(asyncio.Task),
    ("django.contrib.auth", "get_user_model"): lambda: Obj(sys.modules["django.contrib.auth"].get_user_model()),
}
_ENDLESS = 40  # nested evaluations; more is a circle or a joke


def module_of(fn: FunctionType) -> str:
    """Return the name of the module whose globals a function sees."""
    return fn.__globals__.get("__name__") or ""


class Resolver:
    """Evaluates the expressions of one function.

    Args:
        fn: the function.
        node: its syntax tree.
        owner: the class whose method it is, if it is one.
    """

    def __init__(self, fn: FunctionType, node: FunctionNode, owner: type | None = None) -> None:
        self.fn = fn
        self.node = node
        self.owner = owner
        self.map = ScopeMap(node)
        self._known: dict[tuple[int, int], Value | None] = {}
        self._depth = 0
        self._cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False))
        defining = _cell(self._cells["__class__"]) if "__class__" in self._cells else None
        #: The class in whose body the function stands; of its owner it is a base, or the owner itself.
        self.defining = defining if isinstance(defining, type) else owner
        if owner is None:
            self.owner = self.defining
        arguments = [*node.args.posonlyargs, *node.args.args]
        self._first = arguments[0].arg if self.owner is not None and arguments else None

    # -- expressions --

    def value(self, expression: ast.expr | None, scope: Scope) -> Value | None:
        """Return what is known of an expression, or None."""
        if expression is None or self._depth > _ENDLESS:
            return None
        key = (id(expression), id(scope))
        known = self._known.get(key, _MISSING)
        if known is not _MISSING:
            return known  # type: ignore[return-value]
        self._known[key] = None  # what depends on itself is not known
        self._depth += 1
        try:
            found = self._evaluate(expression, scope)
        except Exception:  # objects of the project may do anything when they are looked at
            found = None
        finally:
            self._depth -= 1
        self._known[key] = found
        return found

    def _evaluate(self, node: ast.expr, scope: Scope) -> Value | None:
        if type(node) in _DISPLAYS:
            return Inst(_DISPLAYS[type(node)])
        match node:
            case ast.Name(id=name):
                return self.name(name, scope)
            case ast.Set(elts=elements) | ast.List(elts=elements):
                held = self._agreed([self.value(each, scope) for each in elements]) if elements else None
                return Inst(set if isinstance(node, ast.Set) else list, () if held is None else (held,))
            case ast.Attribute(value=base, attr=attr):
                return self.attribute(self.value(base, scope), attr)
            case ast.Constant(value=value):
                return Inst(type(value))
            case ast.Await(value=inner):
                return self._awaited(inner, scope)
            case ast.Call():
                return self._call(node, scope)
            case ast.NamedExpr(value=inner):
                return self.value(inner, scope)
            case ast.Tuple(elts=elements):
                return Items(tuple(self.value(each, scope) for each in elements))
            case ast.IfExp(body=a, orelse=b):
                return self._agreed([self.value(a, scope), self.value(b, scope)])
            case ast.BoolOp(values=parts):
                return self._agreed([self.value(part, scope) for part in parts])
            case ast.BinOp(left=left, op=op) if isinstance(op, _SET_OPERATORS):
                found = self.value(left, scope)
                return found if isinstance(found, Inst) and found.cls in (set, frozenset) else None
            case ast.Subscript(value=base, slice=ast.Constant(value=int() as index)):
                held = self.value(base, scope)
                if isinstance(held, Items) and -len(held.values) <= index < len(held.values):
                    return held.values[index]
                return self.element(held)
            case ast.Subscript(value=base):
                held = self.value(base, scope)
                if isinstance(held, Inst) and held.cls is dict and len(held.items) == 2:
                    return held.items[1]
        return None

    def name(self, name: str, scope: Scope) -> Value | None:
        """Return what a name stands for in a scope."""
        bindings = scope.find(name)
        if bindings is not None:
            return self._agreed([self._bound(binding, name) for binding in bindings])
        return self.free(name)

    def free(self, name: str) -> Value | None:
        """Return what a name stands for that is not local: of the closure, the module, or built in."""
        if name in self._cells:
            held = _cell(self._cells[name])
            return None if held is _MISSING else Obj(held)
        if name in self.fn.__globals__:
            return Obj(self.fn.__globals__[name])
        held = getattr(builtins, name, _MISSING)
        return None if held is _MISSING else Obj(held, f"builtins.{name}")

    def _agreed(self, values: list[Value | None]) -> Value | None:
        first = values[0]
        return first if all(each is first or same(first, each) for each in values[1:]) else None

    def _bound(self, binding: Binding, name: str) -> Value | None:
        match binding.how:
            case "value":
                return self.value(binding.node, binding.scope)
            case "annotation":
                if name == self._first and binding.node is None and binding.scope is self.map.outer:
                    return self._receiver()
                return self.annotation(binding.node, binding.scope)
            case "element":
                return self.element(self.value(binding.node, binding.scope))
            case "item":
                held = self.value(binding.node, binding.scope)
                if isinstance(held, Items) and binding.index < len(held.values):
                    return held.values[binding.index]
                return None
            case "import" | "from":
                return self._imported(binding)
            case "handler":
                kind = self.value(binding.node, binding.scope)
                return Inst(kind.value) if isinstance(kind, Obj) and isinstance(kind.value, type) else None
            case "local":
                return Local(binding.node, binding.scope)
        return None

    def _receiver(self) -> Value | None:
        assert self.owner is not None
        raw = in_class(self.owner, self.fn.__name__)
        if isinstance(raw, staticmethod):
            return None
        if isinstance(raw, classmethod) or self.fn.__name__ in ("__new__", "__init_subclass__", "__class_getitem__"):
            return Obj(self.owner)
        return Inst(self.owner)

    def _imported(self, binding: Binding) -> Value | None:
        node = binding.node
        alias = node.names[binding.index]
        if isinstance(node, ast.Import):
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            imported(alias.name)
            module = imported(name)
            return Named(name) if module is None else Obj(module, name)
        base = absolute_name(node, self.fn.__globals__)
        module = imported(base)
        if module is None:
            return Named(f"{base}.{alias.name}")
        found = self.attribute(Obj(module, base), alias.name)
        if found is None and (sub := imported(f"{base}.{alias.name}")) is not None:
            return Obj(sub, f"{base}.{alias.name}")
        return found or Named(f"{base}.{alias.name}")

    # -- attributes --

    def attribute(self, base: Value | None, attr: str) -> Value | None:
        """Return what an attribute of a value is."""
        match base:
            case Named(name=name):
                return Named(f"{name}.{attr}")
            case Obj(value=ModuleType() as module):
                return _of_module(module, attr)
            case Obj(value=type() as cls):
                return self._of_class(cls, attr, of_instance=False)
            case Obj(value=value, path=path):
                held = value.__dict__.get(attr, _MISSING) if _has_dict(value) else _MISSING
                if held is not _MISSING:
                    return Obj(held, f"{path}.{attr}" if path else "")
                found = self._of_class(type(value), attr, of_instance=True)
                if found is None and value.__class__ is not type(value):  # a proxy
                    found = self._of_class(value.__class__, attr, of_instance=True)
                return found
            case Inst(cls=type() as cls):
                if attr == "__class__":
                    return Obj(cls)
                if cls in (set, frozenset) and attr in _SET_METHODS:
                    return Member(cls, attr, in_class(cls, attr), True)
                return self._of_class(cls, attr, of_instance=True)
            case Member(raw=property(fget=getter), owner=owner, of_instance=True):
                return self.attribute(self.returned(getter, owner), attr)
            case Super(owner=owner, after=after) if after in owner.__mro__:
                for cls in owner.__mro__[owner.__mro__.index(after) + 1 :]:
                    if attr in cls.__dict__:
                        return Member(owner, attr, cls.__dict__[attr], True)
        return None

    def _of_class(self, cls: type, attr: str, *, of_instance: bool) -> Value | None:
        raw = in_class(cls, attr, _MISSING)
        if raw is _MISSING or isinstance(raw, MemberDescriptorType | GetSetDescriptorType):
            return declared_attribute(cls, attr) if of_instance else None
        if isinstance(raw, type):
            return Obj(raw)
        if type(raw).__name__ == "ManagerDescriptor" and hasattr(raw, "manager"):  # Order.objects
            return Obj(raw.manager)
        if callable(raw) or hasattr(type(raw), "__get__"):
            return Member(cls, attr, raw, of_instance)
        if of_instance:  # which may have one of its own
            return declared_attribute(cls, attr) or (None if raw is None else Inst(type(raw)))
        return Obj(raw, f"{cls.__module__}.{cls.__qualname__}.{attr}")

    # -- calls --

    def _call(self, node: ast.Call, scope: Scope) -> Value | None:
        callee = self.value(node.func, scope)
        match callee:
            case Obj(value=value) if value is super and not node.args and self.owner is not None:
                return Super(self.owner, self.defining or self.owner)
            case Obj(value=value) if value is type and len(node.args) == 1:
                held = self.value(node.args[0], scope)
                return Obj(held.cls) if isinstance(held, Inst) else None
            case Obj(value=value) if (
                any(value is each for each in (set, frozenset, list, sorted)) and len(node.args) == 1
            ):
                element = self.element(self.value(node.args[0], scope))
                return Inst(list if value is sorted else value, () if element is None else (element,))
            case Obj(value=type() as cls) if cls is not type:
                return Inst(cls)
            case Obj(value=value):
                return self.returned(value)
            case Member(raw=raw, owner=owner, name=name, of_instance=of_instance):
                if owner in (set, frozenset) and name in _SET_METHODS and isinstance(node.func, ast.Attribute):
                    return self.value(node.func.value, scope)
                if owner is dict and of_instance and isinstance(node.func, ast.Attribute):
                    return self._of_dict(self.value(node.func.value, scope), name)
                return self.returned(raw, owner)
            case Local(node=ast.FunctionDef(returns=returns) | ast.AsyncFunctionDef(returns=returns), scope=around):
                return self.annotation(returns, around)
        return None

    def _of_dict(self, held: Value | None, method: str) -> Value | None:
        if isinstance(held, Inst) and len(held.items) == 2:
            match method:
                case "keys":
                    return Inst(list, held.items[:1])
                case "values":
                    return Inst(list, held.items[1:])
                case "get" | "pop" | "setdefault":
                    return held.items[1]
        return None

    def _awaited(self, inner: ast.expr, scope: Scope) -> Value | None:
        if isinstance(inner, ast.Call):
            callee = self.value(inner.func, scope)
            if isinstance(callee, Obj) and isinstance(callee.value, FunctionType):
                fn = callee.value
                if (fn.__module__, fn.__qualname__) == ("asyncio.tasks", "wait"):
                    tasks = Inst(set, (Inst(asyncio.Task),))
                    return Items((tasks, tasks))
        return self.value(inner, scope)

    def returned(self, fn: Any, owner: type | None = None) -> Value | None:
        """Return what a call of a function gives, as its annotation says."""
        kind = type(fn)
        told = _TOLD.get(name_of(Obj(fn)))
        if told is not None:
            return told()
        if kind.__module__ == "continuum.core.definitions":
            fn = fn.fn  # what awaiting an activity or a child gives
        if isinstance(fn, classmethod | staticmethod):
            fn = fn.__func__
        if isinstance(fn, MethodType):
            owner = fn.__self__ if isinstance(fn.__self__, type) else type(fn.__self__)
            fn = fn.__func__
        if not isinstance(fn, FunctionType):
            return None
        if not is_project_file(fn.__code__.co_filename):
            return instance_of(return_annotation(fn))  # no need to read it
        node = function_node(fn)
        if node is None or isinstance(node, ast.Lambda) or node.returns is None:
            return None
        cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False))

        def look(name: str) -> Any:
            if name == "Self" and owner is not None:
                return owner
            if name in cells:
                return _cell(cells[name])
            return fn.__globals__.get(name, getattr(builtins, name, None))

        return typed(node.returns, look)

    def element(self, held: Value | None) -> Value | None:
        """Return what iterating over a value gives."""
        if isinstance(held, Items):
            return self._agreed(list(held.values)) if held.values else None
        return held.items[0] if isinstance(held, Inst) and held.items else None

    # -- annotations --

    def annotation(self, node: ast.expr | None, scope: Scope) -> Value | None:
        """Return an instance of what an annotation names."""

        def look(name: str) -> Any:
            if name == "Self" and self.owner is not None:
                return self.owner
            found = self.name(name, scope)
            return found.value if isinstance(found, Obj) else None

        try:
            return None if node is None else typed(node, look)
        except Exception:
            return None


def absolute_name(node: ast.ImportFrom, module_globals: Mapping[str, Any]) -> str:
    """Return the full name of the module that a ``from`` import names."""
    if not node.level:
        return node.module or ""
    package = module_globals.get("__package__") or module_globals.get("__name__", "").rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _of_module(module: ModuleType, attr: str) -> Value | None:
    path = f"{module.__name__}.{attr}"
    held = vars(module).get(attr, _MISSING)
    if held is _MISSING:
        held = sys.modules.get(path, _MISSING)
    if held is _MISSING and "__getattr__" in vars(module):
        held = getattr(module, attr, _MISSING)
    return Named(path) if held is _MISSING else Obj(held, path)


def _has_dict(value: Any) -> bool:
    return not isinstance(value, BuiltinFunctionType) and isinstance(getattr(value, "__dict__", None), dict)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING
