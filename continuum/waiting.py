"""Waiting for the end of a run, without holding a transaction and without asking the database over and over.

Whoever waits registers first and reads the state then, so that no end falls in between. From there on a notification
wakes it (see ``continuum.listening``); where notifications do not arrive, polling does: soon at first, then ever more
slowly, up to ``POLL_INTERVAL``. Between two looks the connection is idle, outside any transaction.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import InterfaceError, OperationalError, connections
from django.db.transaction import TransactionManagementError

from continuum import hints
from continuum.conf import settings as continuum_settings
from continuum.exceptions import ContinuumError, RunNotFoundError
from continuum.listening import Watch, watch
from continuum.statements import first_row

__all__ = ["RunStatus", "WaitInTransactionError", "WaitTimeoutError", "await_end", "read_status", "wait_for_end"]

FIRST_PAUSE = 0.02
PAUSE_GROWTH = 1.5
# Who waits for what has just been sent is mostly told within this time. Until then a look would only be in the way of
# those at work; where they are slower, or the notification is lost, the first look comes so much later.
FIRST_LOOK = 0.01
# A lost connection is replaced, and a restart of the database sat out, before the error becomes the caller's.
PATIENCE_SECONDS = 30.0

_TERMINAL = frozenset({"completed", "failed", "cancelled"})


class WaitTimeoutError(ContinuumError, TimeoutError):
    """The run did not end in time.

    Attributes:
        run_id: the run waited for: the tip of its chain, if it was continued.
        state: the state it was in at last.
        timeout: how long was waited, in seconds.
    """

    def __init__(self, run_id: UUID, state: str, timeout: float) -> None:
        super().__init__(run_id, state, timeout)
        self.run_id = run_id
        self.state = state
        self.timeout = timeout

    def __str__(self) -> str:
        return f"run {self.run_id} was still {self.state} after {self.timeout:g} seconds"


class WaitInTransactionError(ContinuumError, TransactionManagementError):
    """A run that has not ended cannot be waited for inside a transaction.

    The transaction would stay open for as long as that takes; and a run started in it is invisible to the workers until
    it is committed, so that the wait would never end.

    Attributes:
        run_id: the run.
        state: the state it is in.
    """

    def __init__(self, run_id: UUID, state: str) -> None:
        super().__init__(run_id, state)
        self.run_id = run_id
        self.state = state

    def __str__(self) -> str:
        return (
            f"run {self.run_id} is {self.state}: it cannot be waited for inside a transaction. Leave the atomic() "
            "block first (under ATOMIC_REQUESTS: @transaction.non_atomic_requests; in tests: TransactionTestCase)"
        )


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands; result and error are JSON text."""

    id: UUID
    state: str
    workflow: str
    version: int
    result: str | None
    error: str | None

    @property
    def has_ended(self) -> bool:
        return self.state in _TERMINAL


def read_status(alias: str, run_id: UUID, namespace: str | None) -> RunStatus:
    """Return how the run stands; of a chain of continued runs, the one at its tip.

    Raises:
        RunNotFoundError: there is no such run, or not in ``namespace``.
    """
    row = first_row(alias, "client_state", {"run_id": str(run_id), "namespace": namespace})
    if row is None:
        raise RunNotFoundError(run_id)
    return RunStatus(*row)


def wait_for_end(alias: str, run_id: UUID, namespace: str | None, timeout: float | None) -> RunStatus:
    """Return the status of the run once it has ended.

    Raises:
        RunNotFoundError: there is no such run, or not in ``namespace``.
        WaitTimeoutError: it did not end within ``timeout`` seconds.
        WaitInTransactionError: it has not ended, and the caller is inside a transaction.
    """
    woken = threading.Event()
    with watch(alias, woken.set) as interest:
        wait = _Wait(alias, run_id, namespace, timeout, interest)
        if wait.is_early():
            woken.wait(FIRST_LOOK)
        while True:
            woken.clear()
            if wait.look():
                return wait.status
            woken.wait(wait.pause())


async def await_end(alias: str, run_id: UUID, namespace: str | None, timeout: float | None) -> RunStatus:
    """``wait_for_end`` for coroutines: the loop is never blocked."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    with watch(alias, _waker(loop, woken)) as interest:
        wait = _Wait(alias, run_id, namespace, timeout, interest)
        if wait.is_early():
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK):
                    await woken.wait()
        while True:
            woken.clear()
            if await sync_to_async(wait.look, thread_sensitive=True)():
                return wait.status
            pause = wait.pause()  # may give up, with a TimeoutError of its own
            try:
                async with asyncio.timeout(pause):
                    await woken.wait()
            except TimeoutError:
                continue


def _waker(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(woken.set)

    return wake


class _Wait:
    """One caller's wait: when to look, and when to give up."""

    status: RunStatus

    def __init__(self, alias: str, run_id: UUID, namespace: str | None, timeout: float | None, interest: Watch) -> None:
        self._alias = alias
        self._run_id = run_id
        self._namespace = namespace
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._interest = interest
        self._pause = FIRST_PAUSE
        self._failing_since: float | None = None
        self._interest.add(run_id)
        hints.hurry(alias)  # the run, or the signal it waits for, may have been sent by this process

    def is_early(self) -> bool:
        """Tell whether a look would come too early: what was sent is still on its way, and the end will be heard.

        Where the first look may have to raise something, it is better taken.
        """
        return (
            hints.is_fresh(self._run_id)
            and self._interest.listening
            and self._namespace is None
            and not connections[self._alias].in_atomic_block
            and (self._timeout is None or self._timeout > FIRST_LOOK)
        )

    def look(self) -> bool:
        """Read the status; return whether the run has ended."""
        while True:
            try:
                self.status = read_status(self._alias, self._run_id, self._namespace)
            except (OperationalError, InterfaceError):
                if not self._may_try_again():
                    raise
                return False
            self._failing_since = None
            if self.status.has_ended:
                return True
            connection = connections[self._alias]
            if connection.in_atomic_block or not connection.get_autocommit():
                raise WaitInTransactionError(self.status.id, self.status.state)
            # A run that was continued in the meantime: its successor may have ended before it was watched.
            if not self._interest.add(self.status.id):
                return False
            self._run_id, self._namespace = self.status.id, None

    def pause(self) -> float:
        """Return for how many seconds to wait for a notification before the next look."""
        longest = continuum_settings.POLL_INTERVAL
        if self._interest.listening and self._failing_since is None:
            pause = longest
        else:
            pause = min(self._pause, longest)
            self._pause *= PAUSE_GROWTH
        pause *= random.uniform(0.9, 1.1)  # those who wait in crowds should not ask in crowds
        if self._deadline is None:
            return pause
        left = self._deadline - time.monotonic()
        if left <= 0:
            self._give_up()
        return min(pause, left)

    def _give_up(self) -> NoReturn:
        raise WaitTimeoutError(self.status.id, self.status.state, self._timeout or 0.0)

    def _may_try_again(self) -> bool:
        """After an error: have Django replace a connection that broke, and tell whether to go on."""
        connection = connections[self._alias]
        if connection.in_atomic_block or not hasattr(self, "status"):
            return False
        connection.close_if_unusable_or_obsolete()
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        return time.monotonic() - self._failing_since < PATIENCE_SECONDS
