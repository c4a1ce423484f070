"""Claiming: taking runs that nobody owns, with their history and their mail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from continuum.conf import settings as continuum_settings
from continuum.core.execution import RunIdentity
from continuum.core.history import Event, event_of
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.exchange import execute, execute_in_parts
from continuum.worker.live import Message
from continuum.worker.loaded import PATIENCE, Loaded
from continuum.worker.sql import load
from continuum.worker.suspects import GROUPS, chances

__all__ = [
    "ClaimedRun",
    "Found",
    "Standing",
    "claim_due",
    "claim_mail",
    "claim_parked",
    "claim_suspects",
    "claimed_again",
    "grouped",
    "heartbeats_of_runs",
    "histories_of",
    "load_histories",
    "look",
    "owned_by",
    "unread_of_runs",
    "unread_of_worker",
]


# Events read at once: a bound on memory, and on how long the loop is kept from other work.
MOST_LOADED = 5_000
# A longer history comes in parts of so many events: while the worker makes events of one, the server reads the next.
PART = 500
# What a column of integers holds.
LAST_SEQ = 2**31 - 1


class ClaimedRun(NamedTuple):
    """A run just claimed. Times in microseconds since the epoch; ``input`` is JSON text."""

    identity: RunIdentity
    token: int
    workflow: str
    version: int
    version_hash: str
    input: str
    claimed_us: int
    deadline_us: int | None
    is_successor: bool
    is_new: bool
    has_mail: bool
    recoveries: int


class Found(NamedTuple):
    """What there may be to do for a worker: runs whose time has come, mail, suspects to be tried, parked runs."""

    due: bool
    mail: bool
    suspects: bool
    parked: bool


async def look(connection: psycopg.AsyncConnection[Any], worker_id: int) -> Found:
    """Look at all that there may be to do with one statement. What it does not find is not there."""
    rows = await execute(connection, load("intake_look"), {"worker": worker_id})
    return Found(*(rows[0] if rows else (True,) * 4))


async def claim_due(
    connection: psycopg.AsyncConnection[Any], worker_id: int, loaded: Loaded, limit: int
) -> list[ClaimedRun]:
    """Claim up to ``limit`` runs whose time has come."""
    return await _claim(connection, "claim_due", worker_id, loaded, limit)


async def claim_mail(
    connection: psycopg.AsyncConnection[Any], worker_id: int, loaded: Loaded, limit: int
) -> list[ClaimedRun]:
    """Claim up to ``limit`` runs that have mail."""
    return await _claim(connection, "claim_mail", worker_id, loaded, limit)


async def claim_parked(
    connection: psycopg.AsyncConnection[Any], worker_id: int, loaded: Loaded, limit: int
) -> list[ClaimedRun]:
    """Claim up to ``limit`` parked runs that this worker's code has not been tried with."""
    return await _claim(connection, "claim_parked", worker_id, loaded, limit)


async def claim_suspects(
    connection: psycopg.AsyncConnection[Any], worker_id: int, loaded: Loaded, limit: int
) -> list[ClaimedRun]:
    """Claim the runs that are to be tried next for having killed their workers, at most ``limit``."""
    return await _claim(connection, "claim_suspects", worker_id, loaded, limit)


async def _claim(
    connection: psycopg.AsyncConnection[Any], statement: str, worker_id: int, loaded: Loaded, limit: int
) -> list[ClaimedRun]:
    parameters = {
        "worker": worker_id,
        "workflows": text_array(loaded.names),
        "hashes": text_array(loaded.hashes),
        "pinned": str(loaded.pinned),
        "patience": str(PATIENCE),
        "grace": str(continuum_settings.LEASE_TTL),
        "limit": limit,
        "sizes": plain_array(GROUPS),
        **chances(),
        **loaded.table,
    }
    return [_claimed(row) for row in await execute(connection, load(statement), parameters)]


async def owned_by(
    connection: psycopg.AsyncConnection[Any], worker_id: int, known: Iterable[int] = ()
) -> list[ClaimedRun]:
    """Return the runs a worker owns, without those whose tokens are ``known``."""
    parameters = {"worker": worker_id, "tokens": plain_array(list(known))}
    return [_claimed(row) for row in await execute(connection, load("claimed_by_worker"), parameters)]


def _claimed(row: tuple[Any, ...]) -> ClaimedRun:
    run_id, token, workflow, version, hash_, namespace, input_, parent, seed, depth, started, *rest = row
    identity = RunIdentity(run_id, namespace, version, parent, started, seed, depth)
    return ClaimedRun(identity, token, workflow, version, hash_, input_, *rest)


class Standing(NamedTuple):
    """What there is of a run that was claimed before: its events, its commands that are out as tasks, and mail."""

    events: int
    queued: list[str]
    has_mail: bool


async def claimed_again(connection: psycopg.AsyncConnection[Any], run_ids: Iterable[UUID]) -> dict[UUID, Standing]:
    """Return how runs stand that were claimed before. To be asked before their mail is read."""
    parameters = {"run_ids": plain_array([run_id.hex for run_id in run_ids])}
    rows = await execute(connection, load("claimed_again"), parameters)
    return {run_id: Standing(*rest) for run_id, *rest in rows}


async def load_histories(
    connection: psycopg.AsyncConnection[Any], sizes: Mapping[UUID, int]
) -> dict[UUID, list[Event]]:
    """Return the events of each run, in order.

    Args:
        sizes: how many events each run is known to have; it may turn out to have more.
    """
    if len(sizes) == 1:
        ((run_id, events),) = sizes.items()
        return {run_id: await _load_history(connection, run_id, events)}
    parameters = {"run_ids": plain_array([run_id.hex for run_id in sizes])}
    return histories_of(await execute(connection, load("history_load"), parameters))


async def _load_history(connection: psycopg.AsyncConnection[Any], run_id: UUID, events: int) -> list[Event]:
    # Each row is an event: nothing is made of it that is looked at once and thrown away, as a long history has many.
    bounds = [*range(0, max(events, 1), PART), LAST_SEQ]
    parts = [{"run_id": run_id.hex, "after": after, "upto": upto} for after, upto in pairwise(bounds)]
    return await execute_in_parts(connection, load("history_of_run"), parts, event_of)


def histories_of(rows: Iterable[tuple[Any, ...]]) -> dict[UUID, list[Event]]:
    """Return the histories that the rows of ``history_load`` make."""
    return {UUID(run_id): [event_of(row[:6]) for row in of_run] for run_id, of_run in groupby(rows, itemgetter(6))}


async def unread_of_runs(connection: psycopg.AsyncConnection[Any], run_ids: Iterable[UUID]) -> list[Message]:
    """Return the unread messages of these runs, oldest first."""
    parameters = {"run_ids": plain_array([run_id.hex for run_id in run_ids])}
    return [Message(*row) for row in await execute(connection, load("inbox_of_runs"), parameters)]


async def unread_of_worker(
    connection: psycopg.AsyncConnection[Any], worker_id: int, before: Iterable[UUID], limit: int
) -> list[Message]:
    """Return the unread messages of all runs a worker owns and of some ``before`` these, oldest first."""
    parameters = {"worker": worker_id, "before": plain_array([run_id.hex for run_id in before]), "limit": limit}
    return [Message(*row) for row in await execute(connection, load("inbox_of_worker"), parameters)]


async def heartbeats_of_runs(
    connection: psycopg.AsyncConnection[Any], run_ids: Iterable[UUID]
) -> dict[UUID, dict[str, str]]:
    """Return the details of the last heartbeats that attempts of these runs have left: by run and command, as JSON."""
    found: dict[UUID, dict[str, str]] = {}
    parameters = {"run_ids": plain_array([run_id.hex for run_id in run_ids])}
    for run_id, command_id, details in await execute(connection, load("heartbeats_of_runs"), parameters):
        found.setdefault(run_id, {})[command_id] = details or "null"
    return found


def grouped(claimed: list[ClaimedRun], sizes: Mapping[UUID, int]) -> Iterator[list[ClaimedRun]]:
    """Divide runs into groups whose histories together are not too long."""
    group: list[ClaimedRun] = []
    size = 0
    for run in claimed:
        events = sizes.get(run.identity.id, 0)
        if group and size + events > MOST_LOADED:
            yield group
            group, size = [], 0
        group.append(run)
        size += events
    if group:
        yield group
