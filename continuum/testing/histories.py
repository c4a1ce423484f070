"""Histories in files: recorded once, replayed by every change of the code from then on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db.models import TextField
from django.db.models.functions import Cast

from continuum import arguments
from continuum.core.definitions import registry
from continuum.core.history import Event
from continuum.core.identity import RunIdentity
from continuum.core.proof import prove
from continuum.exceptions import ReplayDriftError, RunNotFoundError, UnknownWorkflowError
from continuum.models import HistoryEvent, Run
from continuum.moments import aware
from continuum.testing.history_files import HistoryFileError, RecordedHistory
from continuum.testing.memory_runs import MemoryRun
from continuum.testing.redacting import Redact, redacted

__all__ = ["assert_replays", "dump_history"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def dump_history(
    run_id: UUID | str | Run | MemoryRun,
    path: str | os.PathLike[str],
    *,
    redact: Redact | None = None,
    overwrite: bool = False,
    using: str | None = None,
) -> Path:
    """Write the history of a run to a file, for :func:`assert_replays`.

        dump_history(run, "tests/histories/order_shipped.json")

    Args:
        run_id: the run, in any state that has begun; also one of ``continuum_env``.
        path: the file; its folder is made if need be.
        redact: called with the path of each string and number, such as ``"input[0].card"`` or
            ``"shop.charge_card.result"``, and with the value; what it returns, of the same type, is written instead.
            The workflow is run once more with these values, in memory, so that the file replays like any other.
        overwrite: replace a file that is there.
        using: database alias.

    Returns:
        The file's path.

    Raises:
        RunNotFoundError: there is no such run.
        FileExistsError: there is such a file. What was recorded once is not to be changed to fit the code.
        ValueError: the run has not begun; or, redacted, it would go another way.
    """
    recorded = _of_memory(run_id) if isinstance(run_id, MemoryRun) else _of_database(run_id, using)
    if redact is not None:
        recorded = redacted(registry.workflow(recorded.workflow, recorded.version), recorded, redact)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if overwrite else "x", encoding="utf-8") as file:
        file.write(recorded.text())
    return path


def assert_replays(flow: Any, path: Paths) -> list[Path]:
    """Prove that a workflow, as it is now, replays histories recorded earlier.

        assert_replays(order_flow, "tests/histories")

    Args:
        flow: the workflow, or its name; with None each history is replayed by the workflow it names.
        path: a file, or several; or a folder: of the files in it (``*.json``, also further down) those of this
            workflow.

    Returns:
        The files that were replayed.

    Raises:
        AssertionError: one or more of them do not replay; says what each holds, and what the code asks for instead.
        ValueError: a file holds no history, or one of another workflow; or there is none.
        UnknownWorkflowError: no such workflow is loaded.
    """
    definition = None if flow is None else arguments.definition_of(flow)
    several = [path] if isinstance(path, str | os.PathLike) else list(path)
    replayed: list[Path] = []
    broken: list[str] = []
    for each in map(Path, several):
        found = sorted(each.rglob("*.json")) if each.is_dir() else [each]
        for file in found:
            recorded = RecordedHistory.read(file)
            if definition is not None and recorded.workflow != definition.name:
                if each.is_dir():
                    continue
                raise HistoryFileError(f"{file} is a history of {recorded.workflow}, not of {definition.name}")
            replayed.append(file)
            complaint = _replay(definition, recorded)
            if complaint:
                broken.append(f"{file}: {complaint}")
    if not replayed:
        what = "histories" if definition is None else f"histories of {definition.name}"
        raise HistoryFileError(f"there are no {what} in {', '.join(map(str, several))}")
    if broken:
        raise AssertionError("\n\n".join(broken))
    return replayed


def _replay(definition: Any, recorded: RecordedHistory) -> str:
    """Return why a history does not replay; empty if it does."""
    if definition is None:
        try:
            definition = registry.workflow(recorded.workflow, recorded.version)
        except UnknownWorkflowError as error:
            return str(error)
    try:
        prove(definition, recorded.identity, recorded.input, recorded.events, began_us=recorded.began_us)
    except ReplayDriftError as drift:
        return str(drift)
    return ""


def _of_memory(run: MemoryRun) -> RecordedHistory:
    if run.claimed_us is None:
        raise ValueError(f"run {run.id} has not begun: there is no history yet")
    return RecordedHistory(
        run.workflow,
        run.version,
        run.version_hash,
        run.state,
        run.identity,
        run.input_json,
        run.claimed_us,
        tuple(run.records),
    )


def _of_database(run_id: UUID | str | Run, using: str | None) -> RecordedHistory:
    alias = arguments.alias_for(using, run_id)
    wanted = arguments.run_uuid(run_id)
    # The text as it stands there: what the models make of it has lost how it was written.
    run = Run.objects.using(alias).annotate(input_text=Cast("input", TextField())).filter(pk=wanted).first()
    if run is None:
        raise RunNotFoundError(wanted)
    if run.claimed_at is None:
        raise ValueError(f"run {run.id} has not begun: there is no history yet")
    rows = HistoryEvent.objects.using(alias).filter(run_id=run.id).order_by("seq")
    rows = rows.annotate(text=Cast("data", TextField()))
    return RecordedHistory(
        run.workflow,
        run.version,
        run.version_hash,
        run.state,
        RunIdentity(run.id, run.namespace, run.version, run.parent_run_id, _us(run.started_at), run.seed, run.depth),
        run.input_text,
        _us(run.claimed_at),
        tuple(
            Event(seq, type_, command_id, name, text, _us(recorded_at))
            for seq, type_, command_id, name, text, recorded_at in rows.values_list(
                "seq", "type", "command_id", "name", "text", "recorded_at"
            )
        ),
    )


def _us(moment: Any) -> int:
    return int(aware(moment).timestamp()) * 1_000_000 + moment.microsecond
