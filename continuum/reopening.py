"""Going on from what has happened: a failed run from where it failed, a new run from a point in another's history.

Both write in the caller's transaction, and only add: no event is ever changed or taken away, so that the old history
stays readable.
"""

from __future__ import annotations

from uuid import UUID

from django.db import connections, transaction

from continuum import arguments, hints, ids
from continuum.core.history import TERMINAL, Event, EventType
from continuum.core.identity import RunIdentity
from continuum.core.resuming import forked
from continuum.exceptions import RunNotFoundError, RunStateError
from continuum.models import Run
from continuum.worker.sql import load

__all__ = ["fork", "retry"]


def retry(run_id: UUID | str | Run, namespace: str | None = None, *, using: str | None = None) -> Run:
    """Let a failed run go on from where it failed: what succeeded is kept, what failed runs again.

    So do the failed children it failed of. A run that failed by a bug goes on once the mended code is loaded; a saga
    that has compensated takes the steps again that it had undone. Signals that came meanwhile are delivered.

    Args:
        run_id: the run.
        namespace: the namespace it must be in; any if not given.
        using: database alias.

    Returns:
        The same run, ``suspended`` until a worker takes it.

    Raises:
        RunStateError: the run has not failed.
        RunNotFoundError: there is no such run, or not in that namespace.
        TypeError, ValueError: an argument is wrong.
    """
    wanted = arguments.run_uuid(run_id)
    namespace = arguments.namespace_filter(namespace)
    alias = arguments.alias_for(using, run_id)
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute(load("client_retry_lock"), {"run_id": str(wanted), "namespace": namespace})
        row = cursor.fetchone()
        if row is None:
            raise RunNotFoundError(wanted)
        state, successor = row
        if state != Run.State.FAILED:
            needed = "failed" if successor is None else f"failed: it was continued as run {successor}, so retry that"
            raise RunStateError(wanted, state, needed)
        cursor.execute(load("client_retry"), {"run_id": str(wanted)})
        hints.send_ready(alias)
    return Run.objects.using(alias).get(pk=wanted)


def fork(run_id: UUID | str | Run, before: str, namespace: str | None = None, *, using: str | None = None) -> Run:
    """Start a run that shares another's history before a command, and goes on by itself from there.

        continuum.fork(run, before="0:3")

    The run it starts from is left alone, whatever state it is in. What the new one does from the command on, it does
    itself: activities run again, and ``uuid4()`` and ``random()`` give new values.

    Args:
        run_id: the run to start from.
        before: the command's id, as ``run.history()`` shows it in ``command_id``. Of a command that has no event yet,
            in a run that has not ended, everything so far is shared.
        namespace: the namespace the run must be in; any if not given. The new run is in the same.
        using: database alias.

    Returns:
        The new run; ``forked_from_run_id`` is the run it started from. It has no parent and no time limit.

    Raises:
        RunNotFoundError: there is no such run, or not in that namespace.
        ValueError: the run has ended and has no such command.
        TypeError, ValueError: an argument is wrong.
    """
    source = arguments.run_uuid(run_id)
    arguments.text("before", before)
    namespace = arguments.namespace_filter(namespace)
    alias = arguments.alias_for(using, run_id)
    fork_id = ids.uuid7()
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute(load("client_fork_source"), {"run_id": str(source), "namespace": namespace})
        row = cursor.fetchone()
        if row is None:
            raise RunNotFoundError(source)
        parent, started_us, now_us = row
        identity = RunIdentity(source, parent_run_id=parent, started_us=started_us)
        cursor.execute(load("client_fork_history"), {"run_id": str(source)})
        outline = [Event(*event) for event in cursor.fetchall()]
        history, found = forked(outline, identity, fork_id, before, now_us)
        # A run that was retried and that nobody has taken up again yet has still ended, as far as its history goes.
        if not found and outline and outline[-1].type in (*TERMINAL, EventType.RUN_RETRIED):
            raise ValueError(f"before: the history of run {source} holds nothing about a command {before!r}")
        *shared, mark = history
        cursor.execute(
            load("client_fork"),
            {
                "id": str(fork_id),
                "run_id": str(source),
                "seqs": [int(event.name or 0) for event in shared],
                "times": [event.time_us for event in shared],
                "mark": mark.data,
                "mark_time": mark.time_us,
            },
        )
        if cursor.fetchone() != (1, len(shared)):
            raise RunNotFoundError(source)  # deleted in this very moment
        hints.send_ready(alias)
    return Run.objects.using(alias).get(pk=fork_id)
