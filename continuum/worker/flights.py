"""Two statements in one flight: the second is carried out behind the commit of the first, as a transaction of its own.

A hint may go that way: it spares a round trip, and another session that would have to be woken for it. It must not go
in the transaction it speaks of (NOTIFY holds a cluster-wide lock until its transaction is on disk). As the server goes
on to the second statement whatever became of the first, that one has to look for itself what there is to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import psycopg
from psycopg import generators
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

__all__ = ["followed", "possible"]


def possible() -> bool:
    """Tell whether this libpq can do it: it has pipelines from PostgreSQL 14 on."""
    return psycopg.Pipeline.is_supported()


def followed(
    pgconn: PGconn, send: Callable[[], None], send_next: Callable[[], None]
) -> Generator[Wait, Ready, tuple[list[PGresult], list[PGresult]]]:
    """Carry out two statements; return what the server answers to each, be it errors.

    If the connection breaks with only the first one answered, there is no answer to the second.

    Args:
        pgconn: with no transaction open.
        send: hands the first statement to libpq.
        send_next: hands it the second.
    """
    try:
        pgconn.enter_pipeline_mode()
        send()
        pgconn.pipeline_sync()
        send_next()
        pgconn.pipeline_sync()
        results = yield from generators.execute(pgconn)
        try:
            yield from generators.fetch_many(pgconn)  # of the end of the first transaction
            after = yield from generators.fetch_many(pgconn)
            yield from generators.fetch_many(pgconn)
            pgconn.exit_pipeline_mode()
        except psycopg.Error:
            pgconn.finish()  # the next who uses it will see
            after = []
    except BaseException:
        # What is still on its way would be taken for the answer to something else.
        pgconn.finish()
        raise
    return results, after
