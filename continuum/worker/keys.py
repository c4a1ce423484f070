"""Idempotency keys of activities: of each activity and key there is one result, whichever run asks.

A key is a lasting row. Whoever wants to run the body claims it first: the row then names the command, the "holder".
The result replaces the holder in the transaction that records it; a failure for good, or the end of the holder's run,
frees the key. Others look again, now and then, until there is a result or the key is free; none of their attempts is
spent on that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import psycopg

from continuum import ids
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.links import Link
from continuum.worker.sql import load

if TYPE_CHECKING:
    from continuum.worker.attempt import Attempt

__all__ = ["KeyAnswer", "KeyOutcome", "KeyRequest", "KeyState", "Keys", "keep_value", "key_id", "write_outcomes"]

# Requests answered by one round.
MOST_ASKED = 1_000


class KeyState(Enum):
    """How it stands with a key."""

    OURS = auto()  # run the body
    VALUE = auto()  # here is the result
    HELD = auto()  # somebody else is at it: ask again later


class KeyRequest(NamedTuple):
    """A command that asks for its key, to make an attempt."""

    run_id: UUID
    command_id: str
    activity: str
    key: str


class KeyAnswer(NamedTuple):
    """What a request is answered with; ``value_json`` is the result, where there is one."""

    state: KeyState
    value_json: str | None = None


class KeyOutcome(NamedTuple):
    """What becomes of a key that a command may hold: its result as JSON text, or None to give it back."""

    key_id: UUID
    run_id: UUID
    command_id: str
    value_json: str | None


def key_id(activity: str, key: str) -> UUID:
    """Return the ``run_id`` of a key's row."""
    return ids.derived("activity_key", activity, key)


def keep_value(cursor: Any, attempt: Attempt, value_json: str) -> bool:
    """Put the result of an attempt under its key, in the transaction that is open; returns False if it has lost it."""
    held = key_id(attempt.definition.name, attempt.idempotency_key or "")
    cursor.execute(load("keys_values"), _parameters([KeyOutcome(held, attempt.run_id, attempt.command_id, value_json)]))
    return bool(cursor.rowcount)


async def write_outcomes(connection: psycopg.AsyncConnection[Any], outcomes: Collection[KeyOutcome]) -> set[UUID]:
    """Write what becomes of keys, in the transaction that is open; returns the keys. Those held by others stay."""
    results = [outcome for outcome in outcomes if outcome.value_json is not None]
    released = [outcome for outcome in outcomes if outcome.value_json is None]
    if results:
        await connection.execute(load("keys_values"), _parameters(results), prepare=True)
    if released:
        parameters = _parameters(released)
        del parameters["values"]
        await connection.execute(load("keys_release"), parameters, prepare=True)
    return {outcome.key_id for outcome in outcomes}


def _parameters(outcomes: list[KeyOutcome]) -> dict[str, str]:
    # In order, so that two transactions cannot wait for each other's keys.
    outcomes = sorted(outcomes, key=lambda outcome: outcome.key_id)
    return {
        "key_ids": plain_array([outcome.key_id.hex for outcome in outcomes]),
        "run_ids": plain_array([outcome.run_id.hex for outcome in outcomes]),
        "command_ids": text_array([outcome.command_id for outcome in outcomes]),
        "values": text_array([outcome.value_json for outcome in outcomes]),
    }


class Keys:
    """Answers requests for keys, all that have come in meanwhile in one round."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._asked: list[tuple[KeyRequest, Callable[[KeyAnswer], None]]] = []
        self._wake = asyncio.Event()

    def ask(self, request: KeyRequest, answer: Callable[[KeyAnswer], None]) -> None:
        """Ask for a key. ``answer`` is called on the loop; it may come too late to be of use."""
        self._asked.append((request, answer))
        self._wake.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._asked:
                asked, self._asked = self._asked[:MOST_ASKED], self._asked[MOST_ASKED:]
                requests = list(dict.fromkeys(request for request, _ in asked))
                answers = await self._link.use(lambda connection, r=requests: _answers(connection, r))
                for request, answer in asked:
                    answer(answers[request])


async def _answers(connection: psycopg.AsyncConnection[Any], requests: list[KeyRequest]) -> dict[KeyRequest, KeyAnswer]:
    answers: dict[KeyRequest, KeyAnswer] = {}
    # Of several for one key, the first may get it; the others are told who holds it.
    by_key: dict[UUID, list[KeyRequest]] = {}
    for request in requests:
        by_key.setdefault(key_id(request.activity, request.key), []).append(request)
    free = await _claim(connection, {held: waiting[0] for held, waiting in by_key.items()})
    for held in free:
        answers[by_key[held].pop(0)] = KeyAnswer(KeyState.OURS)
    left = [held for held, waiting in by_key.items() if waiting]
    if not left:
        return answers
    cursor = await connection.execute(load("keys_look"), {"key_ids": plain_array([k.hex for k in left])}, prepare=True)
    lapsed: dict[UUID, tuple[UUID, str]] = {}
    for held, value, run_id, command_id, is_live in await cursor.fetchall():
        for request in by_key[held]:
            if value is not None:
                answers[request] = KeyAnswer(KeyState.VALUE, value)
            elif (request.run_id, request.command_id) == (run_id, command_id):
                answers[request] = KeyAnswer(KeyState.OURS)
        if value is None and not is_live:
            lapsed[held] = (run_id, command_id)
    if lapsed:
        takers = {held: next((r for r in by_key[held] if r not in answers), None) for held in lapsed}
        for held in await _take(connection, lapsed, {k: r for k, r in takers.items() if r is not None}):
            answers[takers[held]] = KeyAnswer(KeyState.OURS)
    return {request: answers.get(request, KeyAnswer(KeyState.HELD)) for request in requests}


async def _claim(connection: psycopg.AsyncConnection[Any], asked: dict[UUID, KeyRequest]) -> list[UUID]:
    parameters = {
        "key_ids": plain_array([held.hex for held in asked]),
        "activities": text_array([request.activity for request in asked.values()]),
        "keys": text_array([request.key for request in asked.values()]),
        "run_ids": plain_array([request.run_id.hex for request in asked.values()]),
        "command_ids": text_array([request.command_id for request in asked.values()]),
    }
    cursor = await connection.execute(load("keys_claim"), parameters, prepare=True)
    return [row[0] for row in await cursor.fetchall()]


async def _take(
    connection: psycopg.AsyncConnection[Any], lapsed: dict[UUID, tuple[UUID, str]], takers: dict[UUID, KeyRequest]
) -> list[UUID]:
    parameters = {
        "key_ids": plain_array([held.hex for held in takers]),
        "old_runs": plain_array([lapsed[held][0].hex for held in takers]),
        "old_commands": text_array([lapsed[held][1] for held in takers]),
        "run_ids": plain_array([request.run_id.hex for request in takers.values()]),
        "command_ids": text_array([request.command_id for request in takers.values()]),
    }
    cursor = await connection.execute(load("keys_take"), parameters, prepare=True)
    return [row[0] for row in await cursor.fetchall()]
