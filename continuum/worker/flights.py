"""Several statements in one flight, so that there is one wait for all of their answers.

A hint may go behind the commit of what it tells of, as a transaction of its own: that spares a round trip, and another
session that would have to be woken for it. It must not go in the transaction it speaks of (NOTIFY holds a cluster-wide
lock until its transaction is on disk). As the server goes on to the second statement whatever became of the first, that
one has to look for itself what there is to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

__all__ = ["SUCCESSES", "followed", "in_turn", "possible"]

SUCCESSES = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)

_BROKEN = "the connection broke before the commit was acknowledged"
_UNANSWERED = "the connection broke before the server had answered"


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


def in_turn(
    pgconn: PGconn, sends: Sequence[Callable[[], None]], take: Callable[[list[PGresult]], None]
) -> Generator[Wait, Ready, list[PGresult]]:
    """Carry out statements that only read, and take the answers to each while the server is at the next.

    Args:
        pgconn: with no transaction open.
        sends: hand one statement each to libpq, at least one.
        take: is called with the answers to each that succeeds.

    Returns:
        The answers to the last; or, if one failed, from those to that one on: the others were not carried out.

    Raises:
        psycopg.OperationalError: the connection broke.
    """
    answers: list[PGresult] = []
    if len(sends) == 1 or not possible():
        for send in sends:
            send()
            answers = yield from generators.execute(pgconn)
            if answers[-1].status not in SUCCESSES:
                break
            take(answers)
        return answers
    pgconn.enter_pipeline_mode()
    for send in sends:
        send()
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    failed: list[PGresult] = []
    for _ in sends:
        answers = yield from generators.fetch_many(pgconn)
        if not answers:
            raise psycopg.OperationalError(_UNANSWERED)
        if failed or answers[-1].status not in SUCCESSES:
            failed += answers
        else:
            take(answers)
    yield from generators.fetch_many(pgconn)  # of the end of the pipeline
    pgconn.exit_pipeline_mode()
    return failed or answers


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
