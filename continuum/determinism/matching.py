"""Which rule denies a thing: the names of the denylist, resolved to the objects they stand for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from continuum.core.code.kinds import Inst, Member, Named, Obj, Value, name_of
from continuum.core.code.sources import is_project_file
from continuum.determinism.denylist import RULES
from continuum.determinism.rule import Rule

__all__ = ["Denial", "Matcher"]

_ENTRY = re.compile(r"([\w.]+?)(\.\*)?(?:\((\d)\))?")
_ANY = "*"
_MISSING = object()


class Denial(NamedTuple):
    """What denies something.

    Attributes:
        rule: the rule.
        name: what the thing is called, as its users know it.
        most: denied only where it is called with no more positional arguments than that; None denies it always.
        called: denied only where it is called.
    """

    rule: Rule
    name: str
    most: int | None = None
    called: bool = False


class Matcher:
    """Looks things up in the denylist. Made anew for each scan, as modules are loaded in between.

    Args:
        trusted: modules, with all that is in them, that are never denied.
    """

    def __init__(self, trusted: tuple[str, ...] = ()) -> None:
        self.trusted = trusted
        self._names: dict[str, Denial] = {}
        self._packages: dict[str, Rule] = {}
        self._objects: dict[int, tuple[Any, Denial]] = {}
        self._members: dict[tuple[type, str], Denial] = {}
        self._classes: dict[type, Rule] = {}
        self._descriptors: dict[str, Rule] = {}
        self._allowed = {name for rule in RULES for name in rule.allowed}
        for rule in RULES:
            for entry in rule.names:
                self._enter(rule, entry)
            for entry in rule.instances:
                cls = _resolve(entry)
                if isinstance(cls, type):
                    self._classes[cls] = rule
                else:
                    self._descriptors[entry] = rule

    def _enter(self, rule: Rule, entry: str) -> None:
        match = _ENTRY.fullmatch(entry)
        assert match is not None, entry
        name, everything, most = match[1], match[2], match[3]
        found = _resolve(name)
        if everything:
            if isinstance(found, type):
                self._members[found, _ANY] = Denial(rule, name)
            elif isinstance(found, ModuleType):
                for attr, held in vars(found).items():
                    if isinstance(held, MethodType):  # of an object that the module keeps for itself
                        self._objects.setdefault(id(held), (held, Denial(rule, f"{name}.{attr}")))
            self._packages.setdefault(name, rule)
            return
        denial = Denial(rule, name, None if most is None else int(most), called=isinstance(found, type))
        self._names[name] = denial
        parent, _, attr = name.rpartition(".")
        owner = _resolve(parent)
        if isinstance(owner, type):
            self._members[owner, attr] = denial
        elif found is not None and not isinstance(found, ModuleType | bool | int | str | float | tuple):
            self._objects.setdefault(id(found), (found, denial))

    def match(self, value: Value | None) -> Denial | None:
        """Return what denies a value, or None."""
        found = self._match(value)
        if found is None or found.name in self._allowed or within_any(found.name, self.trusted):
            return None
        return found

    def _match(self, value: Value | None) -> Denial | None:
        match value:
            case Named(name=name):
                return self._named(name, is_class=name.rpartition(".")[2][:1].isupper())
            case Member(owner=owner, name=name, raw=raw, of_instance=of_instance):
                return self._member(owner, name, raw, of_instance)
            case Obj(value=held, path=path):
                return self._object(held, path)
        return None

    def instance(self, value: Value | None) -> Rule | None:
        """Return the rule that denies what an instance of a class does, such as iterating over a query set."""
        cls = value.cls if isinstance(value, Inst) else type(value.value) if isinstance(value, Obj) else None
        return self._of_class(cls) if isinstance(cls, type) else None

    def _of_class(self, cls: type) -> Rule | None:
        return next((self._classes[each] for each in cls.__mro__ if each in self._classes), None)

    def _named(self, name: str, *, is_class: bool) -> Denial | None:
        if name in self._names:
            return self._names[name]
        package = name
        while package := package.rpartition(".")[0]:
            if package in self._packages:
                return Denial(self._packages[package], name, called=is_class)
        return None

    def _member(self, owner: type, name: str, raw: Any, of_instance: bool = True) -> Denial | None:
        if owner.__module__.startswith("continuum."):
            return None  # such as continuum.logger, which is a logger, and silent during replay
        kind = type(raw)
        if (
            of_instance and kind.__module__ in self._descriptors and "Deferred" not in kind.__name__
        ):  # not order.customer_id
            return Denial(self._descriptors[kind.__module__], f"{owner.__name__}.{name}")
        function = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if isinstance(function, FunctionType) and is_project_file(function.__code__.co_filename):
            return None  # the project's own: what it does is looked at there
        shown = f"{owner.__name__}.{name}"
        if name[:2] != "__":
            rule = self._of_class(owner)
            if rule is not None:
                return Denial(rule, shown)
        for cls in owner.__mro__:
            denial = self._members.get((cls, name)) or (self._members.get((cls, _ANY)) if name[:2] != "__" else None)
            if denial is not None:
                return denial._replace(name=shown, called=False)
            if name in cls.__dict__ and cls is not object:
                home = f"{cls.__module__}.{cls.__qualname__}.{name}"
                plain = callable(function) and not issubclass(owner, BaseException)
                if plain and (found := self._named(home, is_class=False)) is not None:
                    return found._replace(name=shown)
        return None

    def _made(self, cls: type, path: str) -> Denial | None:
        """Return what denies any use of an object of the module's: its class may not be made in a workflow either."""
        if issubclass(cls, Enum):
            return None
        for each in cls.__mro__[:-1]:
            known = self._objects.get(id(each))
            if known is not None and known[0] is each and known[1].most is None:
                return known[1]._replace(called=False)
            home = f"{each.__module__}.{each.__qualname__}"
            if each.__module__ != "builtins" and (found := self._named(home, is_class=False)) is not None:
                return found if found.most is None and not issubclass(cls, BaseException) else None
        rule = self._of_class(cls) if cls.__module__ == "_thread" else None
        return None if rule is None else Denial(rule, path or cls.__name__)

    def _object(self, held: Any, path: str) -> Denial | None:
        known = self._objects.get(id(held))
        if known is not None and known[0] is held:
            return known[1]
        if isinstance(held, MethodType | BuiltinFunctionType) and not isinstance(held.__self__, ModuleType | None):
            bound = held.__self__
            owner = bound if isinstance(bound, type) else type(bound)
            return self._member(owner, held.__name__, getattr(held, "__func__", held))
        if isinstance(held, ModuleType):
            return None
        is_class = isinstance(held, type)
        if not is_class and not isinstance(held, FunctionType | BuiltinFunctionType):
            return self._made(type(held), path)
        if is_class and issubclass(held, BaseException):
            return None
        if is_project_object(held):
            return None
        for candidate in (path, ".".join(name_of(Obj(held)) or ())):
            if candidate and candidate not in self._allowed:
                found = self._named(candidate, is_class=is_class)
                if found is not None:
                    return found
        return None


def is_project_object(held: Any) -> bool:
    """Tell whether a function or class is defined in the project, wherever it was reached."""
    if isinstance(held, FunctionType):
        return is_project_file(held.__code__.co_filename)
    if isinstance(held, type):
        file = getattr(sys.modules.get(held.__module__), "__file__", None)
        return isinstance(file, str) and is_project_file(file)
    return False


def within_any(name: str, modules: tuple[str, ...]) -> bool:
    """Tell whether a dotted name is one of the modules, or in one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _resolve(name: str) -> Any:
    """Return the object of a dotted name, if its module is loaded."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if module is not None:
            found: Any = module
            for part in parts[length:]:
                found = _attribute(found, part)
                if found is _MISSING:
                    return None
            return found
    return None


def _attribute(held: Any, name: str) -> Any:
    if isinstance(held, ModuleType):
        return vars(held).get(name, _MISSING)
    return getattr(held, name, _MISSING) if isinstance(held, type) else _MISSING


def entries() -> Iterator[str]:
    """Yield every dotted name of the denylist, without what limits it."""
    for rule in RULES:
        for entry in rule.names:
            match = _ENTRY.fullmatch(entry)
            yield match[1] if match else entry
