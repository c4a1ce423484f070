"""Comments that suppress findings in their line: ``# continuum: allow[D101] only for the log``."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MARK", "Suppression", "suppressions"]

MARK = "continuum: allow"
_COMMENT = re.compile(r"#\s*continuum:\s*allow\s*(?:\[(?P<ids>[^\]]*)\])?(?P<reason>.*)$")


@dataclass(frozen=True, slots=True)
class Suppression:
    """A comment that suppresses findings.

    Attributes:
        line: where it stands.
        ids: of the rules it names, such as ``D101``.
        reason: why; without one it suppresses nothing.
    """

    line: int
    ids: tuple[str, ...]
    reason: str


def suppressions(lines: Sequence[str]) -> dict[int, Suppression]:
    """Return the suppressions in a file, by line."""
    if not any("allow" in line and "continuum" in line for line in lines):
        return {}
    found = {}
    try:
        for token in tokenize.generate_tokens(iter(lines).__next__):
            if token.type == tokenize.COMMENT and (match := _COMMENT.search(token.string)):
                ids = [each.strip().removeprefix("continuum.") for each in (match["ids"] or "").split(",")]
                reason = match["reason"].strip(" \t-:–—")
                found[token.start[0]] = Suppression(token.start[0], tuple(filter(None, ids)), reason)
    except (tokenize.TokenError, IndentationError, StopIteration):
        pass  # it could be parsed, so what is left has no comments
    return found
