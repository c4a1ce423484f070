"""A place in a function where a rule is broken."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from continuum.determinism.denylist import rule
from continuum.determinism.rule import Rule

__all__ = ["Spot", "shown", "spot"]

_LONGEST = 60


class Spot(NamedTuple):
    """A place in a function where a rule is broken.

    Attributes:
        rule: which.
        subject: what breaks it, as the subject of a sentence: "``time.time()``" (reads the clock).
        line: where it begins.
        last: the line it ends in; a suppression may stand in any of them.
        certain: it is not deterministic, whatever the values are.
    """

    rule: Rule
    subject: str
    line: int
    last: int
    certain: bool


def spot(rule_id: str, subject: str, node: Any, certain: bool | None = None) -> Spot:
    """Return a spot at a node; as certain as its rule, unless said otherwise."""
    broken = rule(rule_id)
    if certain is None:
        certain = broken.certain
    return Spot(broken, subject, node.lineno, last_line(node), certain)


def last_line(node: Any) -> int:
    """Return the line a node ends in; of a statement with a body, its head."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and body:
        return max(node.lineno, body[0].lineno - 1)
    return node.end_lineno or node.lineno


def shown(node: ast.expr) -> str:
    """Return an expression as text that fits into a sentence."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
