"""What a run tells others to do: children to start, and the run that continues it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from continuum.ids import derived_child

__all__ = ["ChildOptions", "ChildStart", "Successor"]


class ChildOptions(NamedTuple):
    """What may be said about a child: ``id=``, and namespace and attributes (JSON text) other than its parent's."""

    key: str | None = None
    namespace: str | None = None
    attributes: str | None = None


@dataclass(slots=True)
class ChildStart:
    """A child to start. Starting it twice starts it once, as the id follows from the command.

    Attributes:
        id: the child's run id.
        reply_to: the command its outcome answers, as ``continuum_runs.parent_command_id`` has it.
        definition: the child's workflow.
        input: its arguments, JSON text.
        namespace: where it belongs; None for its parent's.
        attributes: JSON text; None for its parent's.
        key: the ``id=`` its parent gave, if any.
        generation: how often it was started anew because its parent was retried.
        retried_us: when its parent was retried last, microseconds since the epoch, or None: a child that has failed by
            then is retried as well.
    """

    id: UUID
    reply_to: str
    definition: Any
    input: str
    namespace: str | None = None
    attributes: str | None = None
    key: str | None = None
    generation: int = 0
    retried_us: int | None = None

    def belong_to(self, parent_id: UUID, command_id: str, time_us: int) -> None:
        """Take the id that follows from parent, command and generation."""
        self.reply_to = f"{command_id}#{self.generation}" if self.generation else command_id
        self.id = derived_child(parent_id, self.reply_to, self.key, time_us)


class Successor(NamedTuple):
    """The run that goes on where a run has ended with ``continue_as_new``.

    Attributes:
        id: its run id.
        input: its arguments, JSON text.
        signals: signals that came and nobody has asked for: name and payload (JSON text), in order.
    """

    id: UUID
    input: str
    signals: tuple[tuple[str, str], ...] = ()
