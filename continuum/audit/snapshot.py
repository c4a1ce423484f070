"""Reading several tables as of one moment, without being able to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction

__all__ = ["snapshot"]

# As for a worker's own statements: planned for tables of any size, whatever the statistics say of them today.
_PLANNING = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}


@contextmanager
def snapshot(alias: str) -> Iterator[Any]:
    """Yield a cursor in a read-only transaction that sees one moment throughout (``REPEATABLE READ``).

    Inside a transaction of the caller's it is a part of that, and sees what that sees. Nothing it sets outlives it.

    Args:
        alias: the database.
    """
    connection = connections[alias]
    outermost = not connection.in_atomic_block
    with transaction.atomic(using=alias), connection.cursor() as cursor:
        if outermost:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SET TRANSACTION READ ONLY")
        for name, value in _PLANNING.items():
            cursor.execute("SELECT set_config(%s, %s, true)", [name, value])
        yield cursor
        # There is nothing to commit; rolled back to where it began, a caller's transaction may write again.
        transaction.set_rollback(True, using=alias)
