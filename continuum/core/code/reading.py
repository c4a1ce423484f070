"""A function, read: what its source refers to, as real objects. Read once, whoever calls it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial, partialmethod
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from continuum.core.code.constants import Constant, class_constants, constant
from continuum.core.code.kinds import Inst, Items, Local, Member, Obj, Value, name_of
from continuum.core.code.resolving import Resolver
from continuum.core.code.scopes import Scope
from continuum.core.code.sources import OURS, FunctionNode, function_node
from continuum.core.code.typed import in_class

__all__ = ["Found", "Reading", "Reference", "functions_in", "is_ours", "read"]

#: A function, and the class it was found in where it was found in one.
Found = tuple[FunctionType, type | None]

#: These take a function that does not run as part of the workflow's code.
_ELSEWHERE = frozenset(
    {
        ("continuum.core.facts", "side_effect"),
        ("asyncio.threads", "to_thread"),
        ("asgiref.sync", "sync_to_async"),
        ("asgiref.sync", "SyncToAsync"),
    }
)
_ELSEWHERE_METHODS = frozenset({"run_in_executor"})
_MAKERS = ("__new__", "__init__", "__post_init__")
_DEEPEST = 6  # of partials in partials and decorators around decorators


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a function's source refers to.

    Attributes:
        line: where.
        functions: functions that may be called through it, each with the class it was found in.
        cls: the class it names, if it is one.
        made: instances of that class may be made; False where it is but an annotation.
        constant: the constant of a module that it names, if it is one.
        certain: the functions are these and no others.
    """

    line: int
    functions: tuple[tuple[FunctionType, type | None], ...] = ()
    cls: type | None = None
    made: bool = True
    constant: Constant | None = None
    certain: bool = True


@dataclass(frozen=True, eq=False)
class Reading:
    """A function, read.

    Attributes:
        fn: the function; ``node`` its syntax tree, ``file`` where it stands.
        resolver: evaluates the expressions in it.
        outside: ids of the nodes in it that do not run as workflow code, such as what ``side_effect`` is given.
        references: what it refers to, in the order of its source.
        attributes: the names of attributes of values that are not known for certain, and where they are used first.
    """

    fn: FunctionType
    node: FunctionNode
    file: str
    resolver: Resolver
    outside: frozenset[int]
    references: tuple[Reference, ...]
    attributes: dict[str, int]

    @cached_property
    def nodes(self) -> list[tuple[Any, Scope]]:
        """The nodes that run as part of the workflow, each with its scope; outer before inner."""
        if not self.outside:
            return self.resolver.map.nodes
        return [pair for pair in self.resolver.map.nodes if id(pair[0]) not in self.outside]

    @cached_property
    def _by_kind(self) -> dict[type, list[tuple[Any, Scope]]]:
        found: dict[type, list[tuple[Any, Scope]]] = {}
        for pair in self.nodes:
            found.setdefault(type(pair[0]), []).append(pair)
        return found

    def of(self, *kinds: type) -> Iterator[tuple[Any, Scope]]:
        """Yield the nodes of some kinds, one kind after the other."""
        for kind in kinds:
            yield from self._by_kind.get(kind, ())


_readings: WeakKeyDictionary[FunctionType, dict[type | None, Reading | None]] = WeakKeyDictionary()


def read(fn: FunctionType, owner: type | None = None) -> Reading | None:
    """Read a function, or return what was read before; None where it has no source to be found."""
    known = _readings.get(fn)
    if known is None:
        known = _readings[fn] = {}
    if owner not in known:
        node = function_node(fn)
        known[owner] = None if node is None else _read(fn, node, owner)
    return known[owner]


def is_ours(cls: type) -> bool:
    """Tell whether a class is that of workflows and activities."""
    return cls.__module__ == "continuum.core.definitions"


def functions_in(value: Any, owner: type | None = None, depth: int = 0) -> list[Found]:
    """Return the plain functions that calling a value may call: inside decorators, partials, methods, properties."""
    kind = type(value)
    if depth > _DEEPEST or is_ours(kind):
        return []

    def within(*held: Any) -> list[Found]:
        return [found for each in held if each is not None for found in functions_in(each, owner, depth + 1)]

    if isinstance(value, FunctionType):
        if value.__code__.co_filename.startswith(OURS):
            return []
        registry = value.__dict__.get("registry")  # of functools.singledispatch
        others: list[Any] = []
        if hasattr(registry, "values") and "dispatch" in value.__dict__:
            others = sorted(registry.values(), key=lambda fn: (str(fn.__module__), str(fn.__qualname__)))
        return [(value, owner), *within(*others, value.__dict__.get("__wrapped__"))]
    if isinstance(value, MethodType):
        held = value.__self__
        return functions_in(value.__func__, held if isinstance(held, type) else type(held), depth + 1)
    if isinstance(value, partial):
        return within(value.func, *filter(callable, [*value.args, *value.keywords.values()]))
    if isinstance(value, partialmethod | cached_property):
        return within(value.func)
    if isinstance(value, property):
        return within(value.fget, value.fset, value.fdel)
    if isinstance(value, classmethod | staticmethod):
        return within(value.__func__)
    if isinstance(value, type) or kind.__module__ in ("builtins", "typing"):
        return []
    wrapped = inspect.getattr_static(value, "__wrapped__", None)
    if wrapped is not None:
        return within(wrapped)
    call = in_class(kind, "__call__")
    return functions_in(call, kind, depth + 1) if isinstance(call, FunctionType) else []


def _read(fn: FunctionType, node: FunctionNode, owner: type | None) -> Reading:
    resolver = Resolver(fn, node, owner)
    outside = frozenset(_outside(resolver))
    attributes: dict[str, int] = {}
    references = tuple(_references(resolver, outside, attributes))
    return Reading(fn, node, fn.__code__.co_filename, resolver, outside, references, attributes)


def _references(resolver: Resolver, outside: frozenset[int], attributes: dict[str, int]) -> Iterator[Reference]:
    inner: set[int] = set()  # the bases of attributes that are known: naming a module or class for what is in it
    for value in [*(resolver.fn.__defaults__ or ()), *(resolver.fn.__kwdefaults__ or {}).values()]:
        if callable(value):
            yield from _named(Obj(value), resolver.node.lineno)
    for annotation in _annotations(resolver.node):
        for cls in _classes(resolver.annotation(annotation, resolver.map.outer)):
            yield Reference(annotation.lineno, cls=cls, made=False)
    for node, scope in resolver.map.nodes:
        if id(node) in outside or id(node) in inner:
            continue
        if isinstance(node, ast.Call):
            yield from _called(resolver, node, scope, attributes)
        elif isinstance(node, ast.Attribute):
            value = resolver.value(node, scope)
            if value is None or (isinstance(value, Member) and value.of_instance):
                attributes.setdefault(node.attr, node.lineno)
            if value is None:
                continue
            base: Any = node.value
            while isinstance(base, ast.Name | ast.Attribute):
                inner.add(id(base))
                base = getattr(base, "value", None)
            held = resolver.value(node.value, scope)
            if node.attr == "call" and isinstance(held, Obj) and is_ours(type(held.value)):
                yield Reference(node.lineno, tuple(functions_in(held.value.fn)))
            else:
                yield from _named(value, node.lineno)
                if isinstance(held, Obj) and isinstance(held.value, type):
                    for each in class_constants(held.value, node.attr):
                        yield Reference(node.lineno, constant=each)
                if isinstance(held, Obj) and hasattr(held.value, "__spec__") and isinstance(held.value.__dict__, dict):
                    yield from _constant(held.value.__dict__, node.attr, value, node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and scope.find(node.id) is None:
            value = resolver.free(node.id)
            if value is not None:
                yield from _named(value, node.lineno)
                if node.id not in resolver.fn.__code__.co_freevars:
                    yield from _constant(resolver.fn.__globals__, node.id, value, node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            value = resolver.value(node, scope)
            if isinstance(value, Obj):  # imported inside the function, or another name for something
                yield from _named(value, node.lineno)


def _classes(value: Value | None) -> Iterator[type]:
    match value:
        case Inst(cls=cls, items=items):
            if isinstance(cls, type):
                yield cls
            for item in items:
                yield from _classes(item)
        case Items(values=items):
            for item in items:
                yield from _classes(item)


def _named(value: Value, line: int) -> Iterator[Reference]:
    if isinstance(value, Obj) and isinstance(value.value, type):
        yield Reference(line, cls=value.value)
    elif isinstance(value, Obj):
        if functions := functions_in(value.value):
            yield Reference(line, tuple(functions))
    elif isinstance(value, Member) and (functions := functions_in(value.raw, value.owner)):
        yield Reference(line, tuple(functions))


def _constant(names: dict[str, Any], name: str, value: Value, line: int) -> Iterator[Reference]:
    held = value.value if isinstance(value, Obj) else None
    if isinstance(held, FunctionType | type) or hasattr(held, "__spec__") or is_ours(type(held)):
        return
    found = constant(names, name)
    if found is not None:
        functions = [each for _, part in found.parts() if callable(part) for each in functions_in(part)]
        yield Reference(line, tuple(functions), constant=found)


def _called(resolver: Resolver, node: ast.Call, scope: Scope, attributes: dict[str, int]) -> Iterator[Reference]:
    callee = resolver.value(node.func, scope)
    if not isinstance(callee, Obj):
        return
    if isinstance(callee.value, type):
        cls = callee.value
        if cls.__module__ != "builtins":
            makers = [each for name in _MAKERS for each in functions_in(in_class(cls, name), cls)]
            yield Reference(node.lineno, tuple(makers), cls=cls)
    elif callee.value is getattr and len(node.args) > 1:
        if isinstance(node.args[1], ast.Constant):
            attributes.setdefault(str(node.args[1].value), node.lineno)
        else:
            held = resolver.value(node.args[0], scope)
            if isinstance(held, Inst) and isinstance(held.cls, type):
                # A method whose name is computed: it may be any.
                names = sorted({name for each in held.cls.__mro__[:-1] for name in each.__dict__})
                methods = [(name, in_class(held.cls, name)) for name in names]
                found = [each for _, raw in methods for each in functions_in(raw, held.cls)]
                yield Reference(node.lineno, tuple(found), cls=held.cls, certain=False)


def _outside(resolver: Resolver) -> Iterator[int]:
    nodes = resolver.map.nodes
    given: set[int] = set()
    for node, scope in nodes:
        if isinstance(node, ast.Call) and node.args and _runs_elsewhere(resolver.value(node.func, scope), node):
            for argument in node.args:
                if isinstance(argument, ast.Name | ast.Attribute | ast.Lambda | ast.Call) and _is_function(
                    resolver, argument, scope
                ):
                    given.update(id(each) for each in ast.walk(argument))
    if not given:
        return
    yield from given
    for node, scope in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        bindings = scope.find(node.name)
        uses = [
            id(each)
            for each, around in nodes
            if isinstance(each, ast.Name)
            and each.id == node.name
            and isinstance(each.ctx, ast.Load)
            and around.find(node.name) is bindings
        ]
        if bindings is not None and uses and given.issuperset(uses):
            yield from (id(each) for each in ast.walk(node))


def _runs_elsewhere(callee: Value | None, node: ast.Call) -> bool:
    if isinstance(callee, Obj):
        return name_of(callee) in _ELSEWHERE
    return isinstance(node.func, ast.Attribute) and node.func.attr in _ELSEWHERE_METHODS


def _is_function(resolver: Resolver, node: ast.expr, scope: Scope) -> bool:
    if isinstance(node, ast.Call):
        callee = resolver.value(node.func, scope)
        return isinstance(callee, Obj) and callee.value is partial
    if isinstance(node, ast.Lambda):
        return True
    value = resolver.value(node, scope)
    return isinstance(value, Local | Member) or (isinstance(value, Obj) and callable(value.value))


def _annotations(node: FunctionNode) -> Iterator[ast.expr]:
    arguments = node.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        if argument.annotation is not None:
            yield argument.annotation
