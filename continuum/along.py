"""Hints that go to the server along with the statements they speak of, behind their commit.

That is the fastest way (see ``continuum.worker.flights``): when the caller hears that its statement is committed, the
server is at the hint already. It takes a statement that is prepared, and so no transaction of the caller's; and a hint
that would be sent at once and on its own. All others go the way of ``continuum.hints``.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from continuum import hints
from continuum.worker import flights
from continuum.worker.sql import load

__all__ = ["Along"]


class Along:
    """A hint that may go along with a statement.

    Args:
        alias: the database.
        name: the hint's statement (see ``continuum.worker.sql``), whose first column is whom it has told of.
        run_id: of what it tells.

    Attributes:
        told: the run that the workers were told of, or None: then they are still to be.
    """

    __slots__ = ("_alias", "_run_id", "text", "told")

    def __init__(self, alias: str, name: str, run_id: UUID) -> None:
        self._alias = alias
        self._run_id = run_id
        self.text = load(name)
        self.told: UUID | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of its statement."""
        return {"run_id": str(self._run_id)}

    def goes(self) -> bool:
        """Tell whether it goes along with a statement that is sent now; if so, it counts among the hints sent."""
        return flights.possible() and hints.goes_along(self._alias)
