"""Two statements in one flight: the second is carried out behind the commit of the first, as a transaction of its own.

A hint may go that way: it spares a round trip, and another session that would have to be woken for it. It must not go
in the transaction it speaks of (NOTIFY holds a cluster-wide lock until its transaction is on disk). As the server goes
on to the second statement whatever became of the first, that one has to look for itself what there is to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

__all__ = ["followed", "possible"]

_BROKEN = "the connection broke before the commit was acknowledged"


def possible() -> bool:
    """Tell whether this libpq can do it: it has pipelines from PostgreSQL 14 on."""
    return psycopg.Pipeline.is_supported()


def followed(
    pgconn: PGconn, send: Callable[[], None], send_next: Callable[[], None]
) -> Generator[Wait, Ready, tuple[list[PGresult], list[PGresult]]]:
    """Carry out two statements; return what the server answers to each, be it errors.

    The commit of the first takes place after its answer: what keeps it from that is among the answers to it.

    Args:
        pgconn: with no transaction open.
        send: hands the first statement to libpq.
        send_next: hands it the second.

    Returns:
        tuple: the answers to the first, and those to the second; none to that if the connection broke after the commit.

    Raises:
        psycopg.OperationalError: the connection broke before the commit of the first was acknowledged.
    """
    try:
        pgconn.enter_pipeline_mode()
        send()
        pgconn.pipeline_sync()
        send_next()
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        results = yield from _transaction(pgconn)
        try:
            after = yield from _transaction(pgconn)
            pgconn.exit_pipeline_mode()
        except psycopg.Error:
            pgconn.finish()  # the next who uses it will see
            after = []
    except BaseException:
        # What is still on its way would be taken for the answer to something else.
        pgconn.finish()
        raise
    return results, after


def _transaction(pgconn: PGconn) -> Generator[Wait, Ready, list[PGresult]]:
    """Return the answers to a statement up to the end of its transaction, the commit or what went wrong with it.

    Raises:
        psycopg.OperationalError: the connection broke before that.
    """
    answers = yield from generators.fetch_many(pgconn)
    while True:
        try:
            further = yield from generators.fetch_many(pgconn)
        except psycopg.OperationalError:
            further = []
        if not further:
            said = [answer for answer in answers if answer.status == ExecStatus.FATAL_ERROR]
            raise psycopg.errors.error_from_result(said[-1]) if said else psycopg.OperationalError(_BROKEN)
        if further[-1].status == ExecStatus.PIPELINE_SYNC:
            return answers
        answers += further
