"""Starting runs: in the caller's transaction, in one statement; the workers are told after the commit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from django.db import connections, transaction
from django.db.models.base import ModelState

from continuum import arguments, hints, ids, values
from continuum.along import Along
from continuum.core.definitions import WorkflowDefinition
from continuum.exceptions import AlreadyStartedError, RunNotFoundError
from continuum.models import Run
from continuum.statements import first_row
from continuum.worker.sql import load

__all__ = ["RunPrunedError", "get_or_start", "start", "start_many"]

_BATCH_ROWS = 1000
_BATCH_BYTES = 4 * 1024 * 1024


class RunPrunedError(RunNotFoundError):
    """An idempotency key is taken by a run that is no longer stored.

    Attributes:
        run_id: that run.
        workflow: the workflow's name.
        key: the idempotency key.
    """

    def __init__(self, run_id: UUID, workflow: str, key: str) -> None:
        super().__init__(run_id)
        self.args = (run_id, workflow, key)
        self.workflow = workflow
        self.key = key

    def __str__(self) -> str:
        return (
            f"the run that {self.workflow} was started as with idempotency key {self.key!r}, {self.run_id}, is no "
            "longer stored, and the key stays taken"
        )


def start(
    flow: WorkflowDefinition | str,
    *args: Any,
    namespace: str = "default",
    attributes: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
    start_at: datetime | None = None,
    timeout: float | timedelta | None = None,
    priority: int = 0,
    using: str | None = None,
) -> Run:
    """Start a run of a workflow.

        run = continuum.start(order_flow, {"id": "o1", "cents": 900}, idempotency_key="o1")

    Args:
        flow: the workflow, or its registered name.
        *args: its arguments; they must be durable values.
        namespace: where the run belongs, 1 to 200 characters.
        attributes: what the run can be found by, a dict of plain JSON values.
        idempotency_key: at most one run per namespace, workflow and key is ever started.
        start_at: aware datetime before which it does not begin. Where the project has ``USE_TZ = False`` a naive one
            will do, in its ``TIME_ZONE``.
        timeout: seconds or timedelta after which the run is cancelled, counted from when it may begin.
        priority: runs with a higher one are taken first, -32768 to 32767.
        using: database alias, by default ``CONTINUUM["DATABASE"]``.

    Returns:
        The run, ``pending``.

    Raises:
        AlreadyStartedError: the key is taken; ``run_id`` says by which run.
        UnknownWorkflowError: no workflow of that name is loaded.
        DurableValueError: an argument cannot be stored.
        TypeError, ValueError: an argument does not fit the workflow, or an option is wrong.
    """
    definition = arguments.definition_of(flow)
    encoded = arguments.encode_input(definition, args)
    parameters = arguments.start_options(namespace, attributes, start_at, timeout, priority)
    alias = arguments.alias_for(using)
    run_id = ids.uuid7()
    parameters.update(
        id=str(run_id),
        workflow=definition.name,
        version=definition.version,
        version_hash=definition.version_hash,
        input=encoded,
    )
    statement = "client_start"
    if idempotency_key is not None:
        key = arguments.text("idempotency_key", idempotency_key)
        parameters.update(idempotency_key=key, key_id=str(ids.derived("start", namespace, definition.name, key)))
        statement = "client_start_keyed"
    hint = Along(alias, "hint_of_run", run_id)
    moments = first_row(alias, statement, parameters, hint)
    if moments is None:
        # Another statement, since this one's snapshot need not show a key that was committed while it waited.
        taken = first_row(alias, "client_start_key", parameters)
        assert taken is not None
        raise AlreadyStartedError(UUID(json.loads(taken[0])), definition.name, idempotency_key or "")
    if hint.told or hints.send_ready(alias):
        hints.note_sent(run_id)
    return _started(alias, run_id, parameters, moments, encoded)


def get_or_start(
    flow: WorkflowDefinition | str,
    *args: Any,
    idempotency_key: str,
    namespace: str = "default",
    attributes: dict[str, Any] | None = None,
    start_at: datetime | None = None,
    timeout: float | timedelta | None = None,
    priority: int = 0,
    using: str | None = None,
) -> tuple[Run, bool]:
    """Start a run, or return the one that was started with this key before. Arguments as for :func:`start`.

    Returns:
        The run, and whether it was started now.

    Raises:
        RunPrunedError: the key is taken by a run that is no longer stored (a ``RunNotFoundError``).
        UnknownWorkflowError, DurableValueError, TypeError, ValueError: as for :func:`start`.
    """
    arguments.text("idempotency_key", idempotency_key)
    try:
        run = start(
            flow,
            *args,
            namespace=namespace,
            attributes=attributes,
            idempotency_key=idempotency_key,
            start_at=start_at,
            timeout=timeout,
            priority=priority,
            using=using,
        )
    except AlreadyStartedError as taken:
        try:
            return Run.objects.using(arguments.alias_for(using)).get(pk=taken.run_id), False
        except Run.DoesNotExist:
            raise RunPrunedError(taken.run_id, taken.workflow, taken.key) from None
    return run, True


def start_many(
    flow: WorkflowDefinition | str,
    inputs: Iterable[Any],
    *,
    namespace: str = "default",
    attributes: dict[str, Any] | None = None,
    start_at: datetime | None = None,
    timeout: float | timedelta | None = None,
    priority: int = 0,
    using: str | None = None,
) -> list[Run]:
    """Start a run for each input: all of them or none. The options are those of :func:`start`, and hold for all runs.

        continuum.start_many(order_flow, [{"id": "o1", "cents": 900}, {"id": "o2", "cents": 1200}])

    Args:
        flow: a workflow of one argument, or its registered name.
        inputs: that argument, for each run.

    Returns:
        The runs, in the order of the inputs.

    Raises:
        UnknownWorkflowError, DurableValueError, TypeError, ValueError: as for :func:`start`, before any run is started.
    """
    definition = arguments.definition_of(flow)
    options = arguments.start_options(namespace, attributes, start_at, timeout, priority)
    encoded = arguments.encode_inputs(definition, inputs)
    alias = arguments.alias_for(using)
    if not encoded:
        return []
    run_ids = [ids.uuid7() for _ in encoded]
    parameters = {
        **options,
        "workflow": definition.name,
        "version": definition.version,
        "version_hash": definition.version_hash,
        "started_at": None,
    }
    moments: tuple[Any, ...] = ()
    with transaction.atomic(using=alias, savepoint=False), connections[alias].cursor() as cursor:
        for first, last in _batches(encoded):
            # Built by hand: the ids and texts hold nothing to escape, and adapting lists costs more than the insert.
            id_array = f"{{{','.join(map(str, run_ids[first:last]))}}}"
            batch = {**parameters, "ids": id_array, "inputs": f"[{','.join(encoded[first:last])}]"}
            cursor.execute(load("client_start_many"), batch)
            moments = cursor.fetchone()
            parameters["started_at"] = moments[0]
    hints.send_ready(alias)
    return [_started(alias, run_id, parameters, moments, text) for run_id, text in zip(run_ids, encoded, strict=True)]


@cache
def _blank_run() -> dict[str, Any]:
    """The column values that every run begins with."""
    fields = dict.fromkeys(field.attname for field in Run._meta.concrete_fields)
    return fields | {"state": "pending", "lease_token": 0, "recoveries": 0, "depth": 0, "tried_versions": ""}


def _started(alias: str, run_id: UUID, parameters: dict[str, Any], moments: tuple[Any, ...], encoded: str) -> Run:
    """Return the run just written, as reading it again would.

    Filled in directly: the model's constructor would take longer than the statement's share of the round trip.
    """
    run = Run.__new__(Run)
    state = ModelState()
    state.adding, state.db = False, alias
    attributes = parameters["attributes"]
    run.__dict__.update(
        _blank_run(),
        _state=state,
        id=run_id,
        correlation_id=run_id,
        workflow=parameters["workflow"],
        version=parameters["version"],
        version_hash=parameters["version_hash"],
        namespace=parameters["namespace"],
        attributes={} if attributes == "{}" else json.loads(attributes),
        priority=parameters["priority"],
        input=values.decode(encoded),
        waiting_on=[],
        started_at=moments[0],
        next_wakeup_at=moments[1],
        deadline_at=moments[2],
        idempotency_key=parameters.get("idempotency_key"),
    )
    return run


def _batches(texts: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of batches that are neither too many rows nor too many bytes for one statement."""
    first = size = 0
    for index, text in enumerate(texts):
        if index - first == _BATCH_ROWS or (size and size + len(text) > _BATCH_BYTES):
            yield first, index
            first, size = index, 0
        size += len(text)
    yield first, len(texts)
