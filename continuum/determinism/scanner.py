"""Finds what is not deterministic in the source of workflows and of the helpers they call.

    for finding in scan(registry.workflows()):
        print(finding.place, finding, finding.rule.advice)

Each function is looked at once, whoever calls it; see :mod:`continuum.core.code.callees` for which functions those are.
What is certainly not deterministic and what cannot be judged are told apart: the first must be right.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from continuum.core.code.callees import Reached, belongs_to_project, callees
from continuum.core.code.kinds import Member, Obj, Value, name_of
from continuum.core.code.reading import Reading, functions_in
from continuum.core.code.resolving import module_of
from continuum.core.code.sources import source_of
from continuum.core.definitions import WorkflowDefinition
from continuum.determinism.denylist import rule
from continuum.determinism.findings import Finding
from continuum.determinism.handlers import swallowing
from continuum.determinism.matching import Denial, Matcher, within_any
from continuum.determinism.ordering import orders
from continuum.determinism.shared_state import changes
from continuum.determinism.spots import Spot, last_line, shown, spot
from continuum.determinism.suppressions import Suppression, suppressions
from continuum.determinism.unawaited import unawaited

__all__ = ["scan"]

_DRAWS = "continuum.core.facts"


def scan(workflows: Iterable[WorkflowDefinition], *, trusted: tuple[str, ...] = ()) -> list[Finding]:
    """Return what is wrong with workflows, by file and line.

    Args:
        workflows: whose source to look at.
        trusted: names of modules whose functions, with those of modules in them, are taken as deterministic.
    """
    scanner = _Scanner(trusted)
    for workflow in workflows:
        scanner.look_at(workflow)
    return scanner.findings()


class _Scanner:
    def __init__(self, trusted: tuple[str, ...]) -> None:
        self.trusted = trusted
        self.matcher = Matcher(trusted)
        self.spots: dict[Reading, list[Spot]] = {}
        self.impure: dict[FunctionType, bool] = {}
        self.suppressions: dict[str, dict[int, Suppression]] = {}
        # Keyed by place and rule: whom it was found for first, and the names of all.
        self.found: dict[Any, tuple[Spot, Reached, str, set[str]]] = {}
        self.used: set[tuple[str, int]] = set()
        self.seen: dict[tuple[str, int], tuple[Reached, str]] = {}

    def look_at(self, workflow: WorkflowDefinition) -> None:
        if within_any(module_of(workflow.fn), self.trusted):
            return
        try:
            reached = self._callees(workflow.fn)
            for each in reached:
                self._take(each, workflow.name)
        except Exception as error:  # a check that fails must not take the others, or the command, with it
            self._unread(workflow, f"the source, for {type(error).__name__}: {error},")
        else:
            if not reached:
                self._unread(workflow, "the source")

    def _unread(self, workflow: WorkflowDefinition, subject: str) -> None:
        code = workflow.fn.__code__
        unread = Spot(rule("D903"), subject, code.co_firstlineno, code.co_firstlineno, False)
        place = Reached(workflow.fn, None)  # type: ignore[arg-type]
        self.found[workflow.name] = (unread, place, workflow.name, set())

    def _take(self, each: Reached, workflow: str) -> None:
        for one in self._spots(each.reading):
            if self._suppressed(each.file, one):
                continue
            key = (one.rule.id, each.file, one.line, one.subject)
            known = self.found.get(key)
            if known is None or _rank(each, one) < _rank(known[1], known[0]):
                self.found[key] = (one, each, workflow, known[3] if known else set())
            self.found[key][3].add(workflow)
        comments = self._comments(each.file)
        if comments:
            first = min([each.node.lineno, *(d.lineno for d in getattr(each.node, "decorator_list", ()))])
            for line in range(first, (each.node.end_lineno or first) + 1):
                if line in comments:
                    self.seen.setdefault((each.file, line), (each, workflow))

    def _callees(self, fn: Any) -> tuple[Reached, ...]:
        if not self.trusted:
            return callees(fn)
        of_project = belongs_to_project(fn)
        return callees(fn, project=lambda each: of_project(each) and not within_any(module_of(each), self.trusted))

    def _spots(self, reading: Reading) -> list[Spot]:
        if reading not in self.spots:
            self.spots[reading] = []
            found = [*self._denied(reading), *changes(reading), *orders(reading), *swallowing(reading)]
            self.spots[reading] = [*found, *unawaited(reading, self.matcher)]
        return self.spots[reading]

    # -- the denylist --

    def _denied(self, reading: Reading) -> Iterator[Spot]:
        resolver = reading.resolver
        calls: dict[int, ast.Call] = {}
        inner: set[int] = set()  # what a denied name is made of
        for node, scope in reading.nodes:
            if isinstance(node, ast.Call):
                calls[id(node.func)] = node
                if any(_notifies(argument) for argument in node.args):
                    yield spot("D404", f"`{shown(node)}`", node)
            elif isinstance(node, ast.For | ast.AsyncFor):
                denying = self.matcher.instance(resolver.value(node.iter, scope))
                if denying is not None:
                    yield spot(denying.id, f"iterating over `{shown(node.iter)}`", node.iter)
            if not isinstance(node, ast.Name | ast.Attribute) or id(node) in inner:
                continue
            if not isinstance(node.ctx, ast.Load) and not isinstance(node, ast.Name):
                continue
            value = resolver.value(node, scope)
            if reading.fn.__name__ == "__hash__" and isinstance(value, Obj) and value.value is hash:
                continue
            call = calls.get(id(node))
            denial = self.matcher.match(value)
            if denial is not None and _holds(denial, call):
                base: Any = node
                while isinstance(base, ast.Name | ast.Attribute):
                    inner.add(id(base))
                    base = getattr(base, "value", None)
                if isinstance(node.ctx, ast.Load):
                    yield self._spot(denial, node, call)
            elif (wrapped := _cached(value)) is not None and self._is_impure(wrapped):
                yield spot("D504", f"`{shown(node)}()`", call or node)

    def _spot(self, denial: Denial, node: Any, call: ast.Call | None) -> Spot:
        text = shown(node)
        said = denial.name.rpartition(".")[2]
        subject = f"`{text}()`" if call is not None else f"`{text}`"
        if text.rpartition(".")[2] != said and "." in denial.name:
            subject += f", which is {denial.name},"
        return Spot(denial.rule, subject, node.lineno, last_line(call or node), denial.rule.certain)

    def _is_impure(self, fn: FunctionType) -> bool:
        """Tell whether what a function gives depends on more than its arguments."""
        if fn not in self.impure:
            self.impure[fn] = False  # while it is looked at, in case it calls itself
            self.impure[fn] = any(
                any(each.certain and not _says_nothing(each) for each in self._spots(reached.reading))
                or _draws(reached.reading)
                for reached in self._callees(fn)
                if reached.certain
            )
        return self.impure[fn]

    # -- comments --

    def _comments(self, file: str) -> dict[int, Suppression]:
        if file not in self.suppressions:
            source = source_of(file)
            self.suppressions[file] = {} if source is None else suppressions(source.lines)
        return self.suppressions[file]

    def _suppressed(self, file: str, one: Spot) -> bool:
        comments = self._comments(file)
        suppressed = False
        for line in range(one.line, one.last + 1) if comments else ():
            comment = comments.get(line)
            if comment is not None and one.rule.id in comment.ids:
                self.used.add((file, line))
                suppressed = suppressed or bool(comment.reason)
        return suppressed

    # -- the result --

    def findings(self) -> list[Finding]:
        found = [
            Finding(
                one.rule,
                one.subject,
                each.file,
                one.line,
                each.qualname,
                workflow,
                each.chain,
                len(workflows - {workflow}),
                one.certain and each.certain,
            )
            for one, each, workflow, workflows in self.found.values()
        ]
        for (file, line), (each, workflow) in self.seen.items():
            comment = self._comments(file)[line]
            if not comment.ids or not comment.reason:
                said, subject = "D901", "the suppression in this line"
            elif (file, line) not in self.used:
                said, subject = "D902", f"allow[{', '.join(comment.ids)}]"
            else:
                continue
            found.append(
                Finding(rule(said), subject, file, line, each.qualname, workflow, each.chain, 0, rule(said).certain)
            )
        return sorted(found, key=lambda each: (each.file, each.line, each.rule.id, each.subject))


def _says_nothing(one: Spot) -> bool:
    """Tell whether what a function gives does not depend on what was found: it writes, or leaves something undone."""
    return one.rule.id[:2] == "D8" or one.rule.id == "D704"


def _rank(each: Reached, one: Spot) -> tuple[bool, int]:
    return not (one.certain and each.certain), each.distance


def _holds(denial: Denial, call: ast.Call | None) -> bool:
    if call is None:
        return not denial.called and denial.most is None
    given = [*call.args, *call.keywords]
    if denial.most is None:
        return True
    unknown = any(isinstance(each, ast.Starred) or getattr(each, "arg", "") is None for each in given)
    return len(given) <= denial.most and not unknown


def _cached(value: Value | None) -> FunctionType | None:
    held = value.value if isinstance(value, Obj) else value.raw if isinstance(value, Member) else None
    if type(held).__name__ != "_lru_cache_wrapper":
        return None
    functions = functions_in(held)
    return functions[0][0] if functions else None


def _draws(reading: Reading) -> bool:
    return any(
        (name_of(reading.resolver.value(node.func, scope)) or ("",))[0] == _DRAWS
        for node, scope in reading.of(ast.Call)
    )


def _notifies(node: ast.expr) -> bool:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return False
    text = node.value.lstrip()
    return "pg_notify(" in text or (
        text.isascii() and text.split(" ")[0] in ("LISTEN", "UNLISTEN", "NOTIFY") and " " in text
    )
