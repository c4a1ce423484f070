"""The SQL of the hot path: one statement a file, so that it can be read, explained and reviewed as SQL."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files

__all__ = ["load", "numbered"]

# A common table expression after the first begins on the line that ends the one before.
_PART = re.compile(r"\), (\w+) AS ")


@cache
def load(name: str, without: frozenset[str] = frozenset()) -> str:
    """Return the text of the statement ``name`` (the file ``<name>.sql`` beside this module), without its comments.

    Comments are for readers: of a statement of more than 4,096 bytes psycopg works out anew, at each execution, where
    its parameters stand.

    Args:
        name: which.
        without: names of common table expressions to leave out, which nothing else in the statement mentions: each
            costs the server something even where it has nothing to do.

    Raises:
        FileNotFoundError: there is no such statement.
        ValueError: it has no such part.
    """
    text = files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    if missing := without - {found[1] for found in map(_PART.match, lines) if found}:
        raise ValueError(f"{name}.sql has no {', '.join(sorted(missing))}")
    return "\n".join(_kept(lines, without))


@cache
def numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a statement with its parameters numbered, as PostgreSQL itself has them, and their names in that order."""
    names: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return "%" if found[0] == "%%" else f"${names.setdefault(found[1], len(names) + 1)}"

    return re.sub(r"%\((\w+)\)s|%%", number, text).encode(), tuple(names)


def _kept(lines: Iterable[str], without: frozenset[str]) -> Iterator[str]:
    left_out = False
    for line in lines:
        if line.startswith(")"):
            part = _PART.match(line)
            left_out = part is not None and part[1] in without
        if not left_out:
            yield line
