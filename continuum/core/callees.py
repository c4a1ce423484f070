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
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from continuum.core.reading import Found, Reading, functions_in, is_ours, read
from continuum.core.resolving import module_of
from continuum.core.sources import FunctionNode, is_project_file
from continuum.core.typed import in_class

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


class Reached(NamedTuple):
    """A function that a workflow can call, the workflow's own one included.

    Attributes:
        fn: the plain function.
        node: its syntax tree; line numbers are those of ``file``.
        file: where it is defined.
        chain: the calls that lead to it, the first one in the workflow itself; empty for the workflow.
        certain: False where a method may be another one of the same name.
        reading: what is known of the expressions in it.
    """

    fn: FunctionType
    node: FunctionNode
    file: str
    chain: tuple[Call, ...]
    certain: bool
    reading: Reading

    @property
    def qualname(self) -> str:
        """The name of the function inside its module."""
        return self.fn.__qualname__


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
        return tuple(_walk(found, project))
    if root not in _walks:
        _walks[root] = tuple(_walk(found, belongs_to_project(root)))
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


_Way = tuple[FunctionType, type | None, tuple[Call, ...]]


def _walk(found: list[Found], project: Callable[[FunctionType], bool]) -> Iterator[Reached]:
    *wrappers, (root, owner) = found
    seen: set[Found] = set()
    surely: deque[_Way] = deque([(root, owner, ())])
    perhaps: deque[_Way] = deque()
    for wrapper, _ in wrappers:
        code = root.__code__
        surely.append((wrapper, None, (Call(wrapper.__code__.co_qualname, code.co_filename, code.co_firstlineno),)))
    # Which method of a class is called on a value that is not known: any whose name is used somewhere.
    classes: dict[type, tuple[Call, ...]] = {}
    attributes: dict[str, tuple[tuple[Call, ...], str, int]] = {}
    while surely or perhaps:
        certain = bool(surely)
        function, owner, chain = (surely or perhaps).popleft()
        if (function, owner) in seen or (chain and not project(function)):
            continue
        seen.add((function, owner))
        reading = read(function, owner)
        if reading is None:
            continue
        yield Reached(function, reading.node, reading.file, chain, certain, reading)

        def called(callee: FunctionType, line: int, chain: Any = chain, file: str = reading.file) -> tuple[Call, ...]:
            return (*chain, Call(callee.__code__.co_qualname, file, line))

        for reference in reading.references:
            for callee, cls in reference.functions:
                queue = surely if certain and reference.certain else perhaps
                queue.append((callee, cls, called(callee, reference.line)))
            named = reference.cls
            if named is not None and named not in classes:
                classes[named] = chain
                for callee, cls in _implicit(named, reference.made):
                    perhaps.append((callee, cls, called(callee, reference.line)))
                for name, (way, file, line) in attributes.items():
                    for callee, cls in _methods(named, name):
                        perhaps.append((callee, cls, called(callee, line, way, file)))
        for name, line in reading.attributes.items():
            if name not in attributes:
                attributes[name] = (chain, reading.file, line)
                for known in classes:
                    for callee, cls in _methods(known, name):
                        perhaps.append((callee, cls, called(callee, line)))


def _methods(cls: type, name: str) -> list[Found]:
    raw = in_class(cls, name)
    return [] if raw is None or isinstance(raw, type) else functions_in(raw, cls)


def _implicit(cls: type, made: bool) -> Iterator[Found]:
    """Yield the methods of a class that the language calls by itself; those that make an instance where one is made."""
    names = {name for each in cls.__mro__[:-1] for name in each.__dict__ if name[:2] == "__" == name[-2:]}
    for name in sorted(names - _NEVER - (frozenset() if made else _MAKERS)):
        yield from _methods(cls, name)
