"""Waiting on conditions instead of sleeping: every helper here has a deadline and says what it waited for."""

import asyncio
import inspect
import time

from django.db import connection

__all__ = ["blocked", "eventually", "eventually_async", "sessions_of"]

_STEP = 0.005
_LONGEST_STEP = 0.05
# Against tests that hang: far more than anything takes, also on a busy machine, and less than after which leases end.
_PATIENCE = 25.0


def eventually(condition, timeout=_PATIENCE, *, message=""):
    """Call ``condition`` until what it returns is true, and return that.

    An ``AssertionError`` inside counts as "not yet", so a block of asserts can be waited for; its last words end up in
    the failure.

    Raises:
        AssertionError: ``timeout`` seconds passed first.
    """
    deadline = time.monotonic() + timeout
    step = _STEP
    while True:
        value, doubt = _ask(condition)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(condition, timeout, message, value, doubt))
        time.sleep(step)
        step = min(step * 1.5, _LONGEST_STEP)


async def eventually_async(condition, timeout=_PATIENCE, *, message=""):
    """``eventually`` for the inside of a running loop; ``condition`` may be a function or a coroutine function."""
    deadline = time.monotonic() + timeout
    step = _STEP
    while True:
        value, doubt = _ask(condition)
        if inspect.isawaitable(value):
            try:
                value = await value
            except AssertionError as error:
                value, doubt = None, error
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(condition, timeout, message, value, doubt))
        await asyncio.sleep(step)
        step = min(step * 1.5, _LONGEST_STEP)


def sessions_of(name):
    """Return what the sessions of an application are at in the server, by process id; ``name`` may be a pattern.

    One that its client has closed, or whose client is gone, is there for another moment.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid, state FROM pg_stat_activity WHERE application_name LIKE %s AND datname = current_database()",
            [name],
        )
        return dict(cursor.fetchall())


async def blocked(observer, connection):
    """Wait until a statement of ``connection`` waits for a lock, as another connection sees it."""

    async def waits():
        cursor = await observer.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [connection.info.backend_pid]
        )
        return await cursor.fetchone()

    await eventually_async(waits)


def _ask(condition):
    try:
        return condition(), None
    except AssertionError as error:
        return None, error


def _complaint(condition, timeout, message, value, doubt):
    what = message or getattr(condition, "__qualname__", repr(condition))
    return f"not within {timeout} s: {what}; last seen: {doubt if doubt is not None else value!r}"
