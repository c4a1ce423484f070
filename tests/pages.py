"""The pages of the documentation: their Python, and whether it does what they promise."""

from __future__ import annotations

import ast
import linecache
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.waiting_for import eventually

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN = "run"
"""The mark of a block that is run against a worker: ```` ```python run ````."""
FRAGMENT = "fragment"
"""The mark of a block that needs a project around it, and is only compiled."""

_LITERAL = re.compile(r"""[\[{(\d"'-]|True\b|False\b|None\b""")
_RAISES = re.compile(r"raises (\w+)(?:: (.*))?$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its first line, its language, the words after it, and its text."""

    page: Path
    line: int
    language: str
    marks: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2].strip(), match[3])
        for match in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    return [block for block in found if language in (None, block.language)]


def scenarios(page: Path) -> list[Block]:
    """The blocks of a page that are run against a worker."""
    return [block for block in blocks(page, "python") if block.marks == RUN]


@cache
def module_of(page: Path) -> ModuleType:
    """Run what a page defines, once, as a module in which each line has the number it has on the page."""
    module = ModuleType(f"pages.{page.stem.lower().replace('-', '_')}")
    module.__file__ = f"{page}.py"
    lines: list[str] = []
    for block in blocks(page, "python"):
        if not block.marks:
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    source = "\n".join(lines) + "\n"
    # Where a function's source is looked for, which is part of a workflow's version.
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    sys.modules[module.__name__] = module
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


def perform(block: Block, names: dict[str, Any]) -> int:
    """Run a block statement by statement, and hold what comes of each against the comment behind it.

    ``# {"total": 3}`` promises a value, ``# raises SomeError: words`` an error of that name whose message holds these
    words; other comments are for the reader. What asks ``get_run``, or calls nothing at all, is asked again until it is
    so: a run's row is written when the run has gone quiet, and listeners are told of what is durable by then.

    Returns:
        How many promises were kept.
    """
    kept = 0
    # Ten seconds are plenty for a reader; a machine that runs tests may be busier.
    text = block.text.replace("timeout=10)", "timeout=60)")
    for node in ast.parse(text).body:
        place = f"{block.page.name}:{block.line + node.end_lineno - 1}"
        comment = _comment_after(block, node)
        code = compile(ast.Module([node], []), place, "exec")
        if raises := _RAISES.match(comment):
            _expect_error(code, names, raises[1], raises[2] or "", place)
        elif _LITERAL.match(comment):
            assert isinstance(node, ast.Expr), f"{place}: only an expression can promise a value"
            promised = ast.literal_eval(comment)
            inside = [type(each) for each in ast.walk(node.value)]
            lasting = ast.Call not in inside and ast.Name in inside
            _expect_value(compile(ast.Expression(node.value), place, "eval"), names, promised, place, lasting)
        else:
            exec(code, names)
            continue
        kept += 1
    return kept


def _comment_after(block: Block, node: ast.stmt) -> str:
    line = block.text.splitlines()[node.end_lineno - 1].encode()
    return line[node.end_col_offset :].decode().strip().removeprefix("#").strip()


def _expect_error(code: Any, names: dict[str, Any], kind: str, words: str, place: str) -> None:
    raised = None
    try:
        exec(code, names)
    except Exception as error:
        raised = error
    assert raised is not None, f"{place}: did not raise {kind}"
    assert kind in [each.__name__ for each in type(raised).__mro__], f"{place}: raised {raised!r}"
    assert words in str(raised), f"{place}: the message is {raised}"


def _expect_value(code: Any, names: dict[str, Any], promised: Any, place: str, lasting: bool) -> None:
    def as_promised() -> bool:
        try:
            value = eval(code, names)
        except LookupError as error:  # such as waiting_on[0] of a run that is at work
            raise AssertionError(f"{place}: {error!r}") from error
        assert (type(value), value) == (type(promised), promised), f"{place}: promised {promised!r}, got {value!r}"
        return True

    if lasting or "get_run" in code.co_names:
        eventually(as_promised, 60, message=place)
    else:
        as_promised()
