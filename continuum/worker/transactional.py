"""Activities whose writes commit together with the record of their result: they take effect exactly once.

What an attempt writes through Django's connection, a lasting record of (run, command), and the message that tells the
run are one transaction. Three things keep a second effect away:

* the lease. The statement that writes the record checks it, and locks it against being declared lost until the commit;
  an attempt from a queue takes its task's row away, and finds none once the task is in other hands;
* the record. A command has one. Whoever comes second, however late, finds it and rolls back;
* the fence. Before an attempt is reported as failed or timed out, a record without a result is put in its place, which
  only later attempts may fill in. Should the attempt have committed after all, that is what comes to light here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import psycopg
from django.db import Error, connections, transaction

from continuum.exceptions import ActivityCancelledError, NonRetryableError
from continuum.worker.attempt import Attempt, AttemptResult
from continuum.worker.connections import Backoff, brief
from continuum.worker.keys import keep_value
from continuum.worker.live import Message
from continuum.worker.sql import load

__all__ = ["Transactions"]

logger = logging.getLogger("continuum.worker")

# How often an attempt that lost to a concurrent transaction is made again before it counts as failed.
TRIES = 5
# How long a transaction may stay open between the check of the lease and its commit: if we are cut off right there,
# this is how long the record and the lease stay locked for others.
OPEN_SECONDS = 10
# Fences that are written at once for attempts that timed out.
MOST_FENCES = 4
# Serialization failure, deadlock.
_CONFLICTS = ("40001", "40P01")
_LAST_ATTEMPT = 2**15 - 1


class _RecordedError(BaseException):
    """The command has its result already: what this attempt wrote is to be rolled back."""

    def __init__(self, value_json: str) -> None:
        self.value_json = value_json


class _UnwantedError(BaseException):
    """The attempt may not take effect: what it wrote is to be rolled back."""


class Transactions:
    """Makes attempts of transactional activities.

    Args:
        alias: the database of the worker, the only one such a transaction can be in.
        worker_id: the worker.
        clock: returns the current time in microseconds since the epoch; called from any thread.
        connect: opens an autocommit connection of the worker's own.
    """

    def __init__(
        self,
        alias: str,
        worker_id: int,
        clock: Callable[[], int],
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
    ) -> None:
        self._alias = alias
        self._worker_id = worker_id
        self._clock = clock
        self._connect = connect
        self._fences = asyncio.Semaphore(MOST_FENCES)

    def run(self, attempt: Attempt, call: Callable[[Attempt], str]) -> AttemptResult:
        """Make an attempt in the thread that is its own.

        Args:
            attempt: the attempt.
            call: runs its function and returns the encoded result.

        Returns:
            AttemptResult: with the message it left for its run; without one if the result had been recorded before.

        Raises:
            BaseException: whatever the function, or the database, has against it. Then nothing was or will be written.
        """
        self._check_alias(attempt)
        written: list[AttemptResult] = []
        try:
            self._commit(attempt, call, written)
            return written[0]
        except _RecordedError as recorded:
            return AttemptResult(attempt, True, recorded.value_json, None, attempt.started_us, self._clock())
        except _UnwantedError:
            raise ActivityCancelledError(
                f"attempt {attempt.attempt} of {attempt.definition.name} came too late to take effect: it is not "
                "wanted any more, or its worker lost its lease. What it wrote was rolled back"
            ) from None
        except BaseException as error:
            value_json = self._fence_here(attempt)
            if value_json is None:
                raise
            # It broke in the commit, or in what the project had it do after the commit.
            name = attempt.definition.name
            logger.warning("run %s: %s has taken effect, although it ended so:", attempt.run_id, name, exc_info=error)
            if written:
                return written[0]
            return AttemptResult(attempt, True, value_json, None, attempt.started_us, self._clock())

    def _check_alias(self, attempt: Attempt) -> None:
        named = attempt.definition.default_options.transactional
        if named is not True and named != self._alias:
            raise NonRetryableError(
                f"{attempt.definition.name} is transactional in the database {named!r}, but its result is recorded in "
                f"{self._alias!r}: only what is written there can commit together with it. Declare it with "
                "transactional=True, or not as transactional"
            )

    def _commit(self, attempt: Attempt, call: Callable[[Attempt], str], written: list[AttemptResult]) -> None:
        for left in reversed(range(TRIES)):
            written.clear()
            try:
                with transaction.atomic(using=self._alias, durable=True):
                    value_json = Context().run(call, attempt)
                    written.append(self._record(attempt, value_json))
                return
            except Exception as error:
                if not left or attempt.given_up or not _is_conflict(error):
                    raise
                logger.info("%s lost to another transaction and is made again", attempt.definition.name)
            time.sleep(random.uniform(0.005, 0.05) * (TRIES - left))

    def _record(self, attempt: Attempt, value_json: str) -> AttemptResult:
        """Write record and message in the transaction that is open."""
        if attempt.given_up:
            raise _UnwantedError
        ended_us = self._clock()
        fields = {"attempt": attempt.attempt, "started": attempt.started_us, "ended": ended_us}
        payload = f'{json.dumps(fields)[:-1]}, "result": {value_json}}}'
        queued = attempt.task_token is not None
        parameters = {
            **self._identity(attempt),
            "worker": self._worker_id,
            "token": attempt.task_token if queued else attempt.run_token,
            "result": value_json,
            "payload": payload,
            "open_for": f"{OPEN_SECONDS}s",
            "unfenced": False,
        }
        statement = load("transactional_record_task" if queued else "transactional_record")
        with connections[self._alias].cursor() as cursor:
            cursor.execute(statement, parameters)
            _, held, message_id, owner = cursor.fetchone()
            if held and message_id is None:
                cursor.execute(load("transactional_recorded"), parameters)
                (recorded,) = cursor.fetchone()
                if recorded is not None:
                    raise _RecordedError(recorded)
                # A fence of this worker's is written only after the attempt was given up, and read before this check:
                # one that meets an attempt which is still wanted was left by an earlier owner, for attempts of its own.
                if not attempt.given_up:
                    cursor.execute(statement, {**parameters, "unfenced": True})
                    _, held, message_id, owner = cursor.fetchone()
            if message_id is None:
                raise _UnwantedError
            if attempt.idempotency_key is not None and not keep_value(cursor, attempt, value_json):
                raise _UnwantedError
        message = Message(
            attempt.run_id, message_id, "activity", attempt.definition.name, attempt.command_id, payload, None
        )
        return AttemptResult(attempt, True, value_json, None, attempt.started_us, ended_us, message, owner)

    def _identity(self, attempt: Attempt) -> dict[str, Any]:
        return {
            "run_id": attempt.run_id,
            "command_id": attempt.command_id,
            "name": attempt.definition.name,
            "attempt": min(attempt.attempt, _LAST_ATTEMPT),
        }

    # -- fences -------------------------------------------------------------------------------------------------

    def _fence_here(self, attempt: Attempt) -> str | None:
        """Fence off an attempt that has ended, in its own thread; returns the result if it has committed after all."""
        connection = connections[self._alias]
        backoff = Backoff()
        while True:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(load("transactional_fence"), self._identity(attempt))
                    return cursor.fetchone()[0]
            except Error as error:
                # Whether it took effect is not known before the database answers; nor could its failure be recorded.
                # Whatever keeps it from answering: a standby that is still read-only, say.
                logger.warning("what became of a transactional activity is not known yet: %s", brief(error))
                connection.close()
                if attempt.given_up:
                    return None  # whoever gave it up sees to the fence
            time.sleep(backoff.next())

    async def fence(self, attempt: Attempt) -> str | None:
        """Fence off an attempt that is still under way; returns its result if it has committed already.

        If it is just about to commit, this waits for the outcome.
        """
        backoff = Backoff()
        async with self._fences:
            while True:
                try:
                    async with await self._connect() as connection:
                        cursor = await connection.execute(load("transactional_fence"), self._identity(attempt))
                        row = await cursor.fetchone()
                        return None if row is None else row[0]
                except (psycopg.Error, OSError) as error:
                    logger.warning("a fence could not be written yet: %s", brief(error))
                await asyncio.sleep(backoff.next())


def _is_conflict(error: BaseException | None) -> bool:
    """Tell whether an error comes from losing to a concurrent transaction, whatever it was raised as."""
    for _ in range(10):
        if error is None:
            return False
        if getattr(error, "sqlstate", None) in _CONFLICTS:
            return True
        error = error.__cause__
    return False
