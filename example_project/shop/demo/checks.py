"""What must be true of the database when all orders have ended, in SQL, so that nothing of the demo's own is trusted.

Each check counts offences: zero is the only good answer.
"""

from dataclasses import dataclass

from django.db import connection

# The lines of an order, the money booked for it, and what the run says.
_BOOKS = """
WITH books AS (
    SELECT o.id, o.state,
           (SELECT sum(l.quantity * l.unit_price_cents) FROM shop_orderline l WHERE l.order_id = o.id) AS total,
           coalesce((SELECT sum(e.amount_cents) FROM shop_ledgerentry e
                     WHERE e.order_id = o.id AND e.kind = 'charge'), 0) AS charged,
           coalesce((SELECT sum(e.amount_cents) FROM shop_ledgerentry e
                     WHERE e.order_id = o.id AND e.kind = 'refund'), 0) AS refunded,
           (SELECT count(*) FROM shop_ledgerentry e WHERE e.order_id = o.id) AS entries,
           (SELECT count(*) FROM shop_shipment s WHERE s.order_id = o.id) AS parcels
    FROM shop_order o WHERE o.batch = %(batch)s
)
"""

# Each recorded completion of an activity beside the attempts of the same order and step.
_COMPLETIONS = """
FROM shop_order o
JOIN continuum_events e ON e.run_id = o.run_id AND e.type = 'activity_completed'
JOIN shop_attempt a ON a.order_id = o.id AND e.name = 'shop.activities.' || a.step
WHERE o.batch = %(batch)s
"""


@dataclass(frozen=True, slots=True)
class Check:
    """A sentence and the query that counts what contradicts it."""

    sentence: str
    offences: str


CHECKS = (
    Check(
        "every order has ended, and its run completed with the same result",
        """
        SELECT count(*) FROM shop_order o LEFT JOIN continuum_runs r ON r.id = o.run_id
        WHERE o.batch = %(batch)s
          AND (o.state = 'new' OR r.state IS DISTINCT FROM 'completed' OR r.result->>'state' IS DISTINCT FROM o.state)
        """,
    ),
    Check(
        "every run has one terminal event, and it is the last",
        """
        SELECT count(*) FROM shop_order o WHERE o.batch = %(batch)s AND NOT EXISTS (
            SELECT 1 FROM continuum_events e WHERE e.run_id = o.run_id
            HAVING count(*) FILTER (WHERE e.type IN
                                    ('run_completed', 'run_failed', 'run_cancelled', 'run_continued')) = 1
               AND max(e.seq) FILTER (WHERE e.type = 'run_completed') = max(e.seq))
        """,
    ),
    Check(
        "no history has a gap",
        """
        SELECT count(*) FROM shop_order o WHERE o.batch = %(batch)s AND NOT EXISTS (
            SELECT 1 FROM continuum_events e WHERE e.run_id = o.run_id
            HAVING count(*) > 0 AND max(e.seq) - min(e.seq) + 1 = count(*))
        """,
    ),
    Check(
        "every shipped order was charged its total once, and every refunded one got it back",
        _BOOKS
        + """
        SELECT count(*) FROM books WHERE NOT CASE state
            WHEN 'shipped' THEN charged = total AND refunded = 0 AND entries = 1
            WHEN 'refunded' THEN charged = total AND refunded = -total AND entries = 2
            ELSE entries = 0 END
        """,
    ),
    Check(
        "every shipped order is one parcel, and no other order is",
        _BOOKS + "SELECT count(*) FROM books WHERE parcels <> CASE WHEN state = 'shipped' THEN 1 ELSE 0 END",
    ),
    Check(
        # The margin covers the two clocks: a body's start is the database's time, a record's time the worker's.
        "no activity ran again after its completion was recorded",
        "SELECT count(*) " + _COMPLETIONS + " AND a.started_at > e.recorded_at + interval '100 milliseconds'",
    ),
    Check(
        # Guards the check above: a join that finds nothing would find no offence either.
        "the history of every order records its activities",
        """
        SELECT count(*) FROM shop_order o WHERE o.batch = %(batch)s
          AND (SELECT count(*) FROM continuum_events e WHERE e.run_id = o.run_id AND e.type = 'activity_completed'
               AND e.name IN ('shop.activities.read_order', 'shop.activities.close_order')) <> 2
        """,
    ),
)

FIGURES = {
    "activity bodies started": "SELECT count(*) FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id "
    "WHERE o.batch = %(batch)s",
    "failed (busy gateway, refused card)": "SELECT count(*) FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id "
    "WHERE o.batch = %(batch)s AND a.outcome = 'failed'",
    "cut off by kill -9, run again": "SELECT count(*) FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id "
    "WHERE o.batch = %(batch)s AND a.outcome = 'running'",
    "finished but not yet recorded, run again": """
        SELECT coalesce(sum(bodies - 1), 0) FROM (
            SELECT count(*) AS bodies FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id
            WHERE o.batch = %(batch)s AND a.outcome IN ('done', 'already done') GROUP BY o.id, a.step) steps
        """,
    "  of these, found their effect in place": "SELECT count(*) FROM shop_attempt a "
    "JOIN shop_order o ON o.id = a.order_id WHERE o.batch = %(batch)s AND a.outcome = 'already done'",
    "events in the histories": "SELECT count(*) FROM continuum_events e JOIN shop_order o ON o.run_id = e.run_id "
    "WHERE o.batch = %(batch)s",
    "runs taken over from the killed worker": "SELECT count(*) FROM continuum_runs r "
    "JOIN shop_order o ON o.run_id = r.id WHERE o.batch = %(batch)s AND r.recoveries > 0",
}
"""What the summary reports: a label and the query behind it."""


def scalar(sql: str, **parameters: object) -> int:
    """Return the one number a query yields."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0]


def offences(batch: int) -> list[tuple[str, int]]:
    """Run every check: its sentence, and how many rows contradict it."""
    return [(check.sentence, scalar(check.offences, batch=batch)) for check in CHECKS]


def figures(batch: int) -> list[tuple[str, int]]:
    """Run every query of the summary."""
    return [(label, scalar(sql, batch=batch)) for label, sql in FIGURES.items()]


def finished(batch: int) -> int:
    """How many orders have a run that has ended, in whatever way."""
    return scalar(
        "SELECT count(*) FROM continuum_runs r JOIN shop_order o ON o.run_id = r.id "
        "WHERE o.batch = %(batch)s AND r.completed_at IS NOT NULL",
        batch=batch,
    )


def held_by(pid: int, batch: int) -> int:
    """How many unfinished orders the worker with this process id holds."""
    return scalar(
        "SELECT count(*) FROM continuum_runs r JOIN shop_order o ON o.run_id = r.id "
        "JOIN continuum_workers w ON w.id = r.owner_id WHERE o.batch = %(batch)s AND w.pid = %(pid)s",
        batch=batch,
        pid=pid,
    )
