"""What application code calls: start runs, send them signals, cancel them, wait for them, read their results.

Everything is written through Django's own connection, in one statement, and so commits or rolls back with the caller's
transaction; the workers are told after the commit. Each function has an async twin.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from asgiref.sync import sync_to_async

from continuum import arguments, hints, values
from continuum.along import Along
from continuum.core.definitions import registry
from continuum.exceptions import (
    RunCancelledError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    UnknownWorkflowError,
)
from continuum.labelling import set_attributes
from continuum.models import Run
from continuum.reopening import fork, retry
from continuum.starting import RunPrunedError, get_or_start, start, start_many
from continuum.statements import first_row
from continuum.waiting import RunStatus, await_end, read_status, wait_for_end

__all__ = [
    "RunPrunedError",
    "acancel",
    "afork",
    "aget_or_start",
    "aget_run",
    "aresult",
    "aretry",
    "aset_attributes",
    "asignal",
    "astart",
    "astart_many",
    "await_run",
    "cancel",
    "fork",
    "get_or_start",
    "get_run",
    "result",
    "retry",
    "set_attributes",
    "signal",
    "start",
    "start_many",
    "wait_run",
]

P = ParamSpec("P")
T = TypeVar("T")


def get_run(run_id: UUID | str | Run, namespace: str | None = None, *, using: str | None = None) -> Run:
    """Return a run as it is now.

    Args:
        run_id: its id, or the run as it was.
        namespace: the namespace it must be in; any if not given.
        using: database alias.

    Raises:
        RunNotFoundError: there is no such run, or not in that namespace.
        ValueError: ``run_id`` is no UUID.
    """
    wanted = {"pk": arguments.run_uuid(run_id)}
    if namespace is not None:
        wanted["namespace"] = arguments.namespace_filter(namespace)
    try:
        return Run.objects.using(arguments.alias_for(using, run_id)).get(**wanted)
    except Run.DoesNotExist:
        raise RunNotFoundError(wanted["pk"]) from None


def signal(
    run_id: UUID | str | Run,
    name: str,
    payload: Any = None,
    *,
    delivery_id: str | None = None,
    namespace: str | None = None,
    using: str | None = None,
) -> bool:
    """Send a signal to a run; of a chain of continued runs, to the one that is live.

        continuum.signal(run, "fraud_review", "approved", delivery_id=webhook_id)

    Args:
        run_id: the run.
        name: the signal's name, 1 to 200 characters.
        payload: a durable value.
        delivery_id: identifies the delivery, 1 to 500 characters; a repeated one is dropped.
        namespace: the namespace the run must be in; any if not given.
        using: database alias.

    Returns:
        True, or False if a signal with this ``delivery_id`` was sent to the run before, also if it has ended since.

    Raises:
        RunNotFoundError: there is no such run, or not in that namespace.
        RunNotActiveError: the run has ended.
        SignalRefusedError: the workflow, where it is loaded, declares its signals, and this is none of them.
        DurableValueError: the payload cannot be stored.
        TypeError, ValueError: another argument is wrong.
    """
    wanted = arguments.run_uuid(run_id)
    arguments.text("name", name, 200)
    if delivery_id is not None:
        arguments.text("delivery_id", delivery_id)
    alias = arguments.alias_for(using, run_id)
    namespace = arguments.namespace_filter(namespace)
    annotation = None
    # Only where somebody declares signals does it matter whose run this is before it is written to.
    if any(definition.signals is not None for definition in registry.workflows()):
        status = read_status(alias, wanted, namespace)
        if not status.has_ended:
            annotation = arguments.declared_signal(status.id, status.workflow, status.version, name, payload)
    encoded = arguments.encode_value(payload, annotation, "payload")
    return _send(alias, wanted, namespace, "signal", name, encoded, delivery_id)


def cancel(
    run_id: UUID | str | Run, *, reason: str = "", namespace: str | None = None, using: str | None = None
) -> None:
    """Ask a run to stop: ``asyncio.CancelledError`` is raised where it awaits. Its live descendants are cancelled too.

    Args:
        run_id: the run; of a chain of continued runs, the live one is cancelled.
        reason: why, for people.
        namespace: the namespace the run must be in; any if not given.
        using: database alias.

    Raises:
        RunNotFoundError: there is no such run, or not in that namespace.
        RunNotActiveError: the run has ended.
        TypeError, ValueError: an argument is wrong.
    """
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a string, not {reason!r}")
    wanted = arguments.run_uuid(run_id)
    namespace = arguments.namespace_filter(namespace)
    encoded = arguments.encode_value({"reason": reason}, None, "reason")
    _send(arguments.alias_for(using, run_id), wanted, namespace, "cancel", None, encoded, None)


def wait_run(
    run_id: UUID | str | Run,
    timeout: float | timedelta | None = None,
    namespace: str | None = None,
    *,
    using: str | None = None,
) -> Run:
    """Wait until a run has ended; of a chain of continued runs, the last.

    No transaction is held meanwhile. That is why a run that has not ended cannot be waited for inside ``atomic()``.

    Args:
        run_id: the run.
        timeout: seconds or timedelta to wait at most; 0 looks once, None waits for ever.
        namespace: the namespace the run must be in; any if not given.
        using: database alias.

    Returns:
        The run, ``completed``, ``failed`` or ``cancelled``.

    Raises:
        TimeoutError: it did not end in time.
        RunNotFoundError: there is no such run, or not in that namespace.
        WaitInTransactionError: it has not ended, and the caller is inside a transaction (it is a
            ``TransactionManagementError`` too).
    """
    alias, wanted, namespace, limit = _wait_arguments(run_id, timeout, namespace, using)
    return get_run(wait_for_end(alias, wanted, namespace, limit).id, using=alias)


def result(
    run_id: UUID | str | Run,
    timeout: float | timedelta | None = None,
    namespace: str | None = None,
    *,
    using: str | None = None,
) -> Any:
    """Wait until a run has ended, and return what the workflow returned. Arguments as for :func:`wait_run`.

    Returns:
        The value, as the workflow's return annotation says where the workflow is loaded.

    Raises:
        RunFailedError: the run failed; ``error`` says how.
        RunCancelledError: it was cancelled.
        TimeoutError, RunNotFoundError, WaitInTransactionError: as for :func:`wait_run`.
    """
    return _outcome(wait_for_end(*_wait_arguments(run_id, timeout, namespace, using)))


def _twin(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    @wraps(function)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> T:
        return await sync_to_async(function, thread_sensitive=True)(*args, **kwargs)

    twin.__name__ = twin.__qualname__ = f"a{function.__name__}"
    twin.__doc__ = f"The async twin of :func:`{function.__name__}`."
    return twin


astart = _twin(start)
aget_or_start = _twin(get_or_start)
astart_many = _twin(start_many)
aget_run = _twin(get_run)
asignal = _twin(signal)
acancel = _twin(cancel)
aset_attributes = _twin(set_attributes)
aretry = _twin(retry)
afork = _twin(fork)


async def await_run(
    run_id: UUID | str | Run,
    timeout: float | timedelta | None = None,
    namespace: str | None = None,
    *,
    using: str | None = None,
) -> Run:
    """The async twin of :func:`wait_run`."""
    alias, wanted, namespace, limit = _wait_arguments(run_id, timeout, namespace, using)
    return await aget_run((await await_end(alias, wanted, namespace, limit)).id, using=alias)


async def aresult(
    run_id: UUID | str | Run,
    timeout: float | timedelta | None = None,
    namespace: str | None = None,
    *,
    using: str | None = None,
) -> Any:
    """The async twin of :func:`result`."""
    return _outcome(await await_end(*_wait_arguments(run_id, timeout, namespace, using)))


def _send(
    alias: str, run_id: UUID, namespace: str | None, kind: str, name: str | None, payload: str, delivery_id: str | None
) -> bool:
    """Put a message into the inbox of the live run; return False if it is a repeat."""
    hint = Along(alias, "hint_of_mail", run_id)
    row = first_row(
        alias,
        "client_send",
        {
            "run_id": str(run_id),
            "namespace": namespace,
            "kind": kind,
            "name": name,
            "payload": payload,
            "delivery_id": delivery_id,
        },
        hint,
    )
    if row is None:
        raise RunNotFoundError(run_id)
    tip, state, owner_id, sent, repeated = row
    if sent:
        if hint.told == tip or hints.send_run(alias, tip, owner_id):
            hints.note_sent(run_id)
        return True
    if not repeated and state in Run.TERMINAL_STATES:
        raise RunNotActiveError(tip, state)
    return False


def _wait_arguments(
    run_id: UUID | str | Run, timeout: Any, namespace: str | None, using: str | None
) -> tuple[str, UUID, str | None, float | None]:
    return (
        arguments.alias_for(using, run_id),
        arguments.run_uuid(run_id),
        arguments.namespace_filter(namespace),
        arguments.wait_seconds(timeout),
    )


def _outcome(status: RunStatus) -> Any:
    """Return what an ended run returned, or raise what became of it."""
    if status.state == "failed":
        raise RunFailedError(status.id, None if status.error is None else values.decode(status.error))
    if status.state == "cancelled":
        error = None if status.error is None else values.decode(status.error)
        raise RunCancelledError(status.id, (error or {}).get("message", ""))
    if status.result is None:
        return None
    try:
        definition = registry.workflow(status.workflow, status.version)
    except UnknownWorkflowError:
        return values.decode(status.result)
    return values.decode(status.result, definition.returns)
