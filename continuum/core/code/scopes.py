"""Which names are local where in a function, and what binds them."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from continuum.core.code.sources import FunctionNode

__all__ = ["Binding", "Scope", "ScopeMap"]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_LEAVES = frozenset({ast.Constant, ast.alias, ast.Pass, ast.Break, ast.Continue, ast.Nonlocal, ast.Global})
# Fields without names in them; annotations of local variables are never evaluated.
_NO_CHILDREN = frozenset({"ctx", "op", "ops", "annotation", "type_params"})
_BINDING = frozenset(
    (
        *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For, ast.AsyncFor, ast.withitem, ast.Import),
        *(ast.ImportFrom, ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping),
    )
)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Binding(NamedTuple):
    """One way a name gets its value.

    Attributes:
        how: ``value``, ``element`` (of what is iterated over), ``annotation``, ``item`` (of what is unpacked),
            ``import``, ``from``, ``handler``, ``local`` (a function or class defined there), ``entered`` (by a with
            statement) or ``other``.
        node: what it is bound to: an expression, a statement or a definition.
        scope: where to evaluate that.
        index: which item, where several are unpacked; which alias of an import.
    """

    how: str
    node: Any
    scope: Scope
    index: int = 0


class Scope:
    """The names of a function, class body or comprehension inside the function under study."""

    __slots__ = ("bindings", "globals", "is_class", "node", "nonlocals", "parent")

    def __init__(self, node: ast.AST | None, parent: Scope | None, is_class: bool = False) -> None:
        self.node = node
        self.parent = parent
        self.is_class = is_class
        self.bindings: dict[str, list[Binding]] = {}
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()

    def bind(self, name: str, binding: Binding) -> None:
        scope = self
        if name in self.globals:
            return
        while name in scope.nonlocals and scope.parent is not None:
            scope = scope.parent
        scope.bindings.setdefault(name, []).append(binding)

    def find(self, name: str) -> list[Binding] | None:
        """Return what binds a name that is local here or around here; None where it is of the module, or further."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.globals:
                return None
            if name in scope.bindings and (not scope.is_class or scope is self):
                return scope.bindings[name]
            scope = scope.parent
        return None

    def function(self) -> Scope:
        """Return the scope of the function around a comprehension."""
        scope = self
        while isinstance(scope.node, _COMPREHENSIONS) and scope.parent is not None:
            scope = scope.parent
        return scope


class ScopeMap:
    """The nodes of a function that hold names, outer before inner, each with the scope these are looked up in.

    Attributes:
        outer: what is around the function: decorators, defaults and annotations belong there.
        root: the function's own scope.
        nodes: pairs of node and scope. Decorators of the function itself are not among them.
    """

    def __init__(self, node: FunctionNode) -> None:
        self.nodes: list[tuple[ast.AST, Scope]] = []
        self.outer = Scope(None, None)
        self.root = self._function(node, self.outer, decorators=False)

    def _function(self, node: FunctionNode, around: Scope, decorators: bool = True) -> Scope:
        scope = Scope(node, around)
        if decorators and not isinstance(node, ast.Lambda):
            for decorator in node.decorator_list:
                self._visit(decorator, around)
        arguments = node.args
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                self._visit(default, around)
        plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in plain:
            scope.bind(argument.arg, Binding("annotation", argument.annotation, around))
        for packed in filter(None, (arguments.vararg, arguments.kwarg)):
            scope.bind(packed.arg, Binding("other", packed, around))
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        declared = _declared(body)
        scope.globals |= declared[0]
        scope.nonlocals |= declared[1]
        for statement in body:
            self._visit(statement, scope)
        return scope

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        kind = type(node)
        if kind in _LEAVES:
            return
        self.nodes.append((node, scope))
        if kind is ast.Name:
            return
        if isinstance(node, _FUNCTIONS):
            if not isinstance(node, ast.Lambda):
                scope.bind(node.name, Binding("local", node, scope))
            self._function(node, scope)
        elif isinstance(node, ast.ClassDef):
            scope.bind(node.name, Binding("local", node, scope))
            for outside in [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]:
                self._visit(outside, scope)
            inner = Scope(node, scope, is_class=True)
            for statement in node.body:
                self._visit(statement, inner)
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node, scope)
        else:
            if kind in _BINDING:
                self._bind(node, scope)
            for name in kind._fields:
                if name in _NO_CHILDREN:
                    continue
                child = getattr(node, name, None)
                if isinstance(child, list):
                    for each in child:
                        if isinstance(each, ast.AST):
                            self._visit(each, scope)
                elif isinstance(child, ast.AST):
                    self._visit(child, scope)

    def _comprehension(self, node: Any, scope: Scope) -> None:
        inner = Scope(node, scope)
        # The first iterable is evaluated outside, before there are any names inside.
        around = scope
        for generator in node.generators:
            self.nodes.append((generator, around))
            self._visit(generator.iter, around)
            self._target(generator.target, Binding("element", generator.iter, around), inner)
            self._visit(generator.target, inner)
            for condition in generator.ifs:
                self._visit(condition, inner)
            around = inner
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self._visit(part, inner)

    def _bind(self, node: ast.AST, scope: Scope) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._target(target, Binding("value", value, scope), scope)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                scope.bind(name, Binding("annotation", annotation, scope))
            case ast.AugAssign(target=ast.Name(id=name)):
                if not scope.bindings.get(name):
                    scope.bind(name, Binding("other", node, scope))
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                scope.function().bind(name, Binding("value", value, scope))
            case ast.For(target=target, iter=iterable) | ast.AsyncFor(target=target, iter=iterable):
                self._target(target, Binding("element", iterable, scope), scope)
            case ast.withitem(context_expr=value, optional_vars=target) if target is not None:
                self._target(target, Binding("entered", value, scope), scope)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                how = "import" if isinstance(node, ast.Import) else "from"
                for index, alias in enumerate(names):
                    name = alias.asname or (alias.name.partition(".")[0] if how == "import" else alias.name)
                    scope.bind(name, Binding(how, node, scope, index))
            case ast.ExceptHandler(name=str(name), type=kind):
                scope.bind(name, Binding("handler", kind, scope))
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                scope.bind(name, Binding("other", node, scope))
            case ast.MatchMapping(rest=str(name)):
                scope.bind(name, Binding("other", node, scope))

    def _target(self, target: ast.expr, binding: Binding, scope: Scope) -> None:
        if isinstance(target, ast.Name):
            scope.bind(target.id, binding)
        elif isinstance(target, ast.Starred):
            self._target(target.value, Binding("other", target, scope), scope)
        elif isinstance(target, ast.Tuple | ast.List):
            for index, each in enumerate(target.elts):
                if binding.how == "value":
                    unpacked = Binding("item", binding.node, binding.scope, index)
                else:
                    unpacked = Binding("other", target, scope)
                self._target(each, unpacked, scope)


def _declared(body: list[Any]) -> tuple[set[str], set[str]]:
    """Return the names that a function's own statements declare global and nonlocal."""
    of_module: set[str] = set()
    of_outer: set[str] = set()
    stack: list[Any] = list(body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Global):
            of_module.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            of_outer.update(node.names)
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case) and not isinstance(
            node, (*_FUNCTIONS, ast.ClassDef)
        ):
            stack.extend(ast.iter_child_nodes(node))
    return of_module, of_outer
