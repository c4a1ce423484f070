"""Proving that code fits a history, without living on from where the history ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from continuum.core.execution import Execution
from continuum.core.history import Event
from continuum.core.identity import RunIdentity
from continuum.core.watching import Watch
from continuum.exceptions import ReplayDriftError

__all__ = ["prove"]

_LONGEST_SHOWN = 200


def prove(
    definition: Any,
    identity: RunIdentity,
    arguments: str,
    events: Iterable[Event],
    *,
    began_us: int,
    watch: Watch | None = None,
) -> None:
    """Replay a history against a workflow as it is now, and do nothing else.

    Every event is compared as a worker would. What the code wants beyond the last one is refused, not done: no
    ``side_effect()`` runs, nothing is logged, and nothing is recorded. A history without events proves that the
    workflow takes the run's arguments.

    Args:
        definition: the workflow.
        identity: the run's identity.
        arguments: JSON text of its input.
        events: its history so far, in order.
        began_us: when it was first claimed, microseconds since the epoch; what ``now()`` says at first.
        watch: what the code runs under; a watchdog's, where code that never lets go is to be interrupted.

    Raises:
        ReplayDriftError: the code asks for something else than the history holds, or does not take the arguments.
        WorkflowDeadlockError: ``watch`` interrupted it.
    """
    _prove_arguments(definition, identity, arguments)
    proof = _Proof(definition, identity, arguments)
    if watch is not None:
        proof.loop.watch = watch
    try:
        proof.begin(began_us, events)
        proof.replay()
    finally:
        proof.close()


def _prove_arguments(definition: Any, identity: RunIdentity, arguments: str) -> None:
    try:
        args, kwargs = definition.decode_arguments(arguments)
        definition.bind_arguments(tuple(args), kwargs)
    except Exception as exc:
        shown = arguments if len(arguments) <= _LONGEST_SHOWN else f"{arguments[:_LONGEST_SHOWN]}…"
        taken = f"{definition.name}{definition.signature}, which cannot take them ({type(exc).__name__}: {exc})"
        raise ReplayDriftError(identity.id, "input", f"arguments {shown}", taken) from None


class _Proof(Execution):
    """An execution that never goes live: where its history ends it counts as given up."""

    @property
    def replaying(self) -> bool:
        return True

    @property
    def closing(self) -> bool:
        return self.loop.closing or not super().replaying
