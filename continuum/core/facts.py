"""The deterministic stand-ins for clock, randomness and logging, and what a run may know about itself."""

from __future__ import annotations

import logging
from asyncio import _get_running_loop
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from continuum.core import decisions
from continuum.core.effects import current_execution
from continuum.core.loop import DeterministicLoop

__all__ = [
    "RunInfo",
    "logger",
    "now",
    "patched",
    "random",
    "run_info",
    "set_progress",
    "side_effect",
    "today",
    "uuid4",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> datetime:
    """The deterministic clock: the time of what the run was told last, as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=current_execution("now").loop.time_us)


def today() -> date:
    """The date of :func:`now`, in UTC."""
    return (_EPOCH + timedelta(microseconds=current_execution("today").loop.time_us)).date()


def uuid4() -> UUID:
    """A random UUID that is the same in every replay."""
    return UUID(bytes=decisions.draw(current_execution("uuid4"), 16), version=4)


def random() -> float:
    """A random float in [0, 1) that is the same in every replay."""
    return (int.from_bytes(decisions.draw(current_execution("random"), 8), "big") >> 11) * 2.0**-53


def side_effect(fn: Callable[..., Any], *args: Any) -> Any:
    """Run a plain function once, journal what it returns, and return that in every replay.

    Args:
        fn: a quick function that may differ from call to call, such as one that reads a setting.
        args: its arguments.

    Returns:
        The value, as its return annotation says.

    Raises:
        ActivityError: ``fn`` raised; that is journaled as well.
    """
    return decisions.side_effect(current_execution("side_effect"), fn, args)


def patched(name: str) -> bool:
    """Tell whether this run takes the new branch of a change to the workflow's code.

    False only when a history recorded without it is replayed past this place; True when execution gets here live.
    The first decision holds for the whole run.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a patch must be a non-empty string, not {name!r}")
    return decisions.patched(current_execution("patched"), name)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Facts about the run whose code is running."""

    run_id: UUID
    workflow: str
    version: int
    namespace: str
    parent_run_id: UUID | None
    started_at: datetime
    replaying: bool


def run_info() -> RunInfo:
    """Return facts about the run. ``replaying`` is for diagnostics: code must not branch on it."""
    execution = current_execution("run_info")
    run = execution.run
    return RunInfo(
        run.id,
        execution.definition.name,
        run.version,
        run.namespace,
        run.parent_run_id,
        _EPOCH + timedelta(microseconds=run.started_us),
        execution.replaying,
    )


def set_progress(value: Any) -> None:
    """Publish a value that ``get_run(id).progress`` shows while the run lives. It leaves no history.

    Raises:
        DurableValueError: the value cannot be stored.
    """
    current_execution("set_progress").set_progress(value)


class _RunLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Logs once per run: silent while a history is replayed. Records carry ``run_id`` and ``workflow``."""

    def isEnabledFor(self, level: int) -> bool:
        loop = _get_running_loop()
        if type(loop) is DeterministicLoop and (loop.execution.replaying or loop.closing):
            return False
        return self.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        loop = _get_running_loop()
        if type(loop) is DeterministicLoop:
            execution = loop.execution
            extra = kwargs.setdefault("extra", {})
            extra.setdefault("run_id", str(execution.run.id))
            extra.setdefault("workflow", execution.definition.name)
        return msg, kwargs


#: A logger for workflow code.
logger = _RunLogger(logging.getLogger("continuum.workflow"), {})
