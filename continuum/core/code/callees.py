"""The functions of a project that a workflow can call, found in its source.

    for reached in callees(flow.fn):
        reached.qualname, reached.chain

A function is *read* once, whoever calls it: what it refers to is resolved to real objects and kept. A walk from a
workflow then only follows references. What is not run as workflow code is not followed: activities, other workflows,
what ``side_effect`` is given, what is handed to a thread.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from continuum.core.code.reading import Found, Reading, functions_in, is_ours, read
from continuum.core.code.resolving import module_of
from continuum.core.code.sources import FunctionNode, is_project_file
from continuum.core.code.typed import in_class

__all__ = ["Call", "Reached", "belongs_to_project", "callees"]


# Of the class, or called when a class is defined, or by pickle and its like, which workflows have nothing to do with.
_NEVER = frozenset(
    (
        *("__class__", "__dict__", "__weakref__", "__annotate__", "__annotate_func__", "__class_getitem__"),
        *("__init_subclass__", "__set_name__", "__subclasshook__", "__prepare__", "__mro_entries__"),
        *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__"),
    )
)
_MAKERS = frozenset({"__new__", "__init__", "__post_init__"})


class Call(NamedTuple):
    """A step of a call chain: ``function`` is called, or referred to, in that line."""

    function: str
    file: str
    line: int


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """A function that a workflow can call, the workflow's own one included.

    Attributes:
        fn: the plain function.
        reading: what is known of the expressions in it.
        certain: False where a method may be another one of the same name.
        caller: the function that calls it; None for the workflow.
        line: where it does so.
    """

    fn: FunctionType
    reading: Reading
    certain: bool = True
    caller: Reached | None = None
    line: int = 0

    @property
    def node(self) -> FunctionNode:
        """The syntax tree of the function; line numbers are those of ``file``."""
        return self.reading.node

    @property
    def file(self) -> str:
        """Where it is defined."""
        return self.fn.__code__.co_filename

    @property
    def qualname(self) -> str:
        """The name of the function inside its module."""
        return self.fn.__qualname__

    @property
    def chain(self) -> tuple[Call, ...]:
        """The calls that lead to it, the first one in the workflow itself; empty for the workflow."""
        calls: list[Call] = []
        each = self
        while each.caller is not None:
            calls.append(Call(each.fn.__code__.co_qualname, each.caller.file, each.line))
            each = each.caller
        return tuple(reversed(calls))

    @property
    def distance(self) -> int:
        """How many calls lead to it."""
        return 0 if self.caller is None else 1 + self.caller.distance


_walks: WeakKeyDictionary[FunctionType, tuple[Reached, ...]] = WeakKeyDictionary()


def callees(fn: Callable[..., Any], *, project: Callable[[FunctionType], bool] | None = None) -> tuple[Reached, ...]:
    """Return a function and all functions of the project it can call, nearest first.

    Args:
        fn: a workflow, or any function.
        project: says which functions to follow; those of the project unless given.

    Returns:
        tuple: empty where the function has no source to be found. Kept, where ``project`` is not given.
    """
    found = functions_in(fn.fn if is_ours(type(fn)) else fn)
    if not found:
        return ()
    root = found[-1][0]  # what decorators are around
    if project is not None:
        return tuple(_Walk(project).run(found))
    if root not in _walks:
        _walks[root] = tuple(_Walk(belongs_to_project(root)).run(found))
    return _walks[root]


def belongs_to_project(root: Callable[..., Any]) -> Callable[[FunctionType], bool]:
    """Return a function that tells whether a function is of the project that ``root`` is of.

    A project may be installed like a library, as in an image: where the workflow lives is the project, wherever that
    is.
    """
    found = functions_in(root.fn if is_ours(type(root)) else root)  # type: ignore[attr-defined]
    home = module_of(found[-1][0]).partition(".")[0] if found else ""
    named = home not in ("", "continuum") and home not in sys.stdlib_module_names

    def belongs(function: FunctionType) -> bool:
        if is_project_file(function.__code__.co_filename):
            return True
        return named and module_of(function).partition(".")[0] == home

    return belongs


class _Walk:
    """A walk along references, first those that are certain."""

    def __init__(self, project: Callable[[FunctionType], bool]) -> None:
        self.project = project
        self.surely: deque[tuple[FunctionType, type | None, Reached | None, int]] = deque()
        self.perhaps: deque[tuple[FunctionType, type | None, Reached | None, int]] = deque()
        self.seen: set[Found] = set()
        self.named: dict[type, None] = {}  # in order, which a set would not keep
        # Which method of a class is called on a value that is not known: any whose name is used somewhere.
        self.attributes: dict[str, tuple[Reached, int]] = {}

    def run(self, found: list[Found]) -> Iterator[Reached]:
        """Yield what is reached from a function; of several, the last one is inside the others, its decorators."""
        *wrappers, (root, owner) = found
        self.surely.append((root, owner, None, 0))
        first = None
        while self.surely or self.perhaps:
            certain = bool(self.surely)
            function, owner, caller, line = (self.surely or self.perhaps).popleft()
            if (function, owner) in self.seen:
                continue
            self.seen.add((function, owner))
            reading = read(function, owner)
            if reading is None:
                continue
            reached = Reached(function, reading, certain, caller, line)
            yield reached
            if first is None:
                first = reached
                self._call(self.surely, wrappers, reached, root.__code__.co_firstlineno)
            self._follow(reached)

    def _call(self, queue: deque[Any], callees: Iterable[Found], caller: Reached, line: int) -> None:
        for function, owner in callees:
            if (function, owner) not in self.seen and self.project(function):
                queue.append((function, owner, caller, line))

    def _follow(self, reached: Reached) -> None:
        reading = reached.reading
        for reference in reading.references:
            if reference.functions:
                certain = reached.certain and reference.certain
                self._call(self.surely if certain else self.perhaps, reference.functions, reached, reference.line)
            cls = reference.cls
            if cls is not None and cls not in self.named:
                self.named[cls] = None
                self._call(self.perhaps, _implicit(cls, reference.made), reached, reference.line)
                for name, (caller, line) in self.attributes.items():
                    self._call(self.perhaps, _methods(cls, name), caller, line)
        for name, line in reading.attributes.items():
            if name not in self.attributes:
                self.attributes[name] = (reached, line)
                for cls in self.named:
                    self._call(self.perhaps, _methods(cls, name), reached, line)


@cache
def _methods(cls: type, name: str) -> list[Found]:
    raw = in_class(cls, name)
    return [] if raw is None or isinstance(raw, type) else functions_in(raw, cls)


@cache
def _implicit(cls: type, made: bool) -> list[Found]:
    """Return the methods of a class that the language calls by itself, with those that make an instance if one is."""
    names = {name for each in cls.__mro__[:-1] for name in each.__dict__ if name[:2] == "__" == name[-2:]}
    found: list[Found] = []
    for name in sorted(names - _NEVER - (frozenset() if made else _MAKERS)):
        found += _methods(cls, name)
    return found
