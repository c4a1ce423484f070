"""What the scanner finds, and how it is said."""

from __future__ import annotations

import os
from dataclasses import dataclass

from continuum.core.code.callees import Call
from continuum.determinism.rule import Rule

__all__ = ["Finding", "place"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A place in the code of a workflow, or of a helper that it calls, where a rule is broken.

    Attributes:
        rule: which.
        subject: what breaks it, such as "``time.time()``".
        file: where.
        line: where.
        function: the qualified name of the function around it.
        workflow: the name of a workflow that gets there; where there are several, the one with the shortest way.
        chain: the calls that lead there, the first one in the workflow.
        others: how many other workflows get there.
        certain: it is not deterministic; else it cannot be judged.
    """

    rule: Rule
    subject: str
    file: str
    line: int
    function: str
    workflow: str
    chain: tuple[Call, ...]
    others: int
    certain: bool

    @property
    def id(self) -> str:
        """The id of the system check's message: ``continuum.D101``."""
        return f"continuum.{self.rule.id}"

    @property
    def place(self) -> str:
        """File and line."""
        return place(self.file, self.line)

    def __str__(self) -> str:
        said = f"{self.subject[:1].upper()}{self.subject[1:]} {self.rule.does}."
        way = " → ".join(f"{call.function} ({place(call.file, call.line)})" for call in self.chain)
        said += f" The workflow {self.workflow} gets there" + (f" by {way}." if way else ".")
        if self.others:
            said += " So does another workflow." if self.others == 1 else f" So do {self.others} other workflows."
        return said


def place(file: str, line: int) -> str:
    """Return file and line, relative to the current directory where it is in there."""
    relative = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if relative.startswith('..') else relative}:{line}"
