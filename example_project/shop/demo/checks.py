"""What must be true of the database when all orders have ended, in SQL, so that nothing of the demo's own is trusted.

Each check counts offences: zero is the only good answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

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

# Not a comparison with the events' own times: those come from the workers' clocks, a body's start from the database's.
_REPEATED = """
FROM shop_attempt late
JOIN shop_attempt early ON early.order_id = late.order_id AND early.step = late.step
JOIN shop_order o ON o.id = late.order_id
WHERE o.batch = %(batch)s AND late.started_at > early.seen_recorded_at
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
        "the units counted by product are those of the shipped orders, each once",
        """
        SELECT count(*) FROM shop_dispatched d WHERE d.batch = %(batch)s AND d.units <> (
            SELECT coalesce(sum(l.quantity), 0) FROM shop_orderline l JOIN shop_order o ON o.id = l.order_id
            WHERE o.batch = d.batch AND l.sku = d.sku AND o.state = 'shipped')
        """,
    ),
    Check(
        "every batch has ended with an outcome for each order of its file, and one failure",
        """
        SELECT count(*) FROM continuum_runs b
        WHERE b.workflow = 'shop.workflows.batch' AND b.attributes @> jsonb_build_object('file', 'batch-' || %(batch)s)
          AND (b.state <> 'completed'
               OR (SELECT array_agg(k) FROM json_object_keys(b.result->'failures') k)
                  IS DISTINCT FROM ARRAY[%(batch)s || '-404']
               OR (SELECT sum(v::int) FROM json_each_text(b.result->'states') s (k, v))
                  <> json_array_length(b.input->0->'numbers')
               OR (SELECT count(*) FROM continuum_runs c WHERE c.parent_run_id = b.id AND c.completed_at IS NOT NULL)
                  <> json_array_length(b.input->0->'numbers'))
        """,
    ),
    Check(
        "the exported file holds each order line once",
        """
        SELECT count(*) FROM (
            SELECT l.id FROM shop_orderline l JOIN shop_order o ON o.id = l.order_id WHERE o.batch = %(batch)s) l
        FULL JOIN (SELECT id, count(*) AS times FROM unnest(%(exported)s::bigint[]) id GROUP BY id) e USING (id)
        WHERE l.id IS NULL OR e.times IS DISTINCT FROM 1
        """,
    ),
    Check(
        "every period of the subscription was charged once, by a chain of runs that has ended",
        """
        SELECT count(*) FROM shop_subscription s WHERE s.batch = %(batch)s AND (
            s.state <> 'cancelled'
            OR NOT EXISTS (SELECT 1 FROM shop_invoice i WHERE i.subscription_id = s.id
                           HAVING count(*) > 0 AND count(*) = count(DISTINCT i.period) AND count(*) = max(i.period))
            OR (SELECT count(*) FROM continuum_runs r WHERE r.correlation_id = s.run_id AND r.state <> 'completed') > 0
            OR NOT EXISTS (SELECT 1 FROM continuum_runs r WHERE r.correlation_id = s.run_id
                           AND r.continued_from_run_id IS NOT NULL))
        """,
    ),
    Check(
        "no activity whose result was recorded when the worker was killed has run again",
        "SELECT count(*) " + _REPEATED,
    ),
    Check(
        # Guards the check above, which would find nothing if nothing had been seen.
        "results were recorded when the worker was killed, and every history holds the first and the last step",
        """
        SELECT (SELECT count(*) FROM shop_order o WHERE o.batch = %(batch)s
                AND (SELECT count(*) FROM continuum_events e WHERE e.run_id = o.run_id AND e.type = 'activity_completed'
                     AND e.name IN ('shop.activities.read_order', 'shop.activities.close_order')) <> 2)
             + (SELECT CASE WHEN count(a.seen_recorded_at) = 0 THEN 1 ELSE 0 END
                FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id WHERE o.batch = %(batch)s)
        """,
    ),
)

_ATTEMPTS = "SELECT count(*) FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id WHERE o.batch = %(batch)s"

FIGURES = {
    "activity bodies started": _ATTEMPTS,
    "failed: gateway busy, card refused": _ATTEMPTS + " AND a.outcome = 'failed'",
    "cut off by kill -9, and not rolled back": _ATTEMPTS + " AND a.outcome = 'running'",
    "ended but not recorded, run again": """
        SELECT coalesce(sum(bodies - 1), 0) FROM (
            SELECT count(*) AS bodies FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id
            WHERE o.batch = %(batch)s AND a.outcome IN ('done', 'already done') GROUP BY o.id, a.step) steps
        """,
    "recorded when the worker was killed": _ATTEMPTS + " AND a.seen_recorded_at IS NOT NULL",
    "  of these, run again": "SELECT count(*) " + _REPEATED,
    "runs the subscription has gone through": """
        SELECT count(*) FROM continuum_runs r JOIN shop_subscription s ON s.run_id = r.correlation_id
        WHERE s.batch = %(batch)s
        """,
    "periods it was charged for": """
        SELECT count(*) FROM shop_invoice i JOIN shop_subscription s ON s.id = i.subscription_id
        WHERE s.batch = %(batch)s
        """,
    "lines in the exported file": "SELECT coalesce(sum(lines), 0) FROM shop_export WHERE batch = %(batch)s",
    "  of these, written when the worker was killed": "SELECT coalesce(sum(resumed_after), 0) FROM shop_export "
    "WHERE batch = %(batch)s",
    "events in the histories": "SELECT count(*) FROM continuum_events e JOIN shop_order o ON o.run_id = e.run_id "
    "WHERE o.batch = %(batch)s",
}
"""What the summary reports: a label and the query behind it."""


def scalar(sql: str, **parameters: object) -> Any:
    """Return the one value a query yields, or None if it yields no row."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        row = cursor.fetchone()
        return row[0] if row else None


def offences(batch: int, exported: Sequence[int] = ()) -> list[tuple[str, int]]:
    """Run every check: its sentence, and how many rows contradict it.

    Args:
        batch: the number of the demo.
        exported: the ids of the order lines in its file, as often as they are there.
    """
    parameters = {"batch": batch, "exported": list(exported)}
    return [(check.sentence, scalar(check.offences, **parameters)) for check in CHECKS]


def figures(batch: int) -> list[tuple[str, int]]:
    """Run every query of the summary."""
    return [(label, scalar(sql, batch=batch)) for label, sql in FIGURES.items()]


def mark_recorded(batch: int) -> int:
    """Mark the attempts whose result is in the history by now; return how many.

    Rows that commit while this runs are left out, so the time in the mark is later than the records it tells of.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE shop_attempt a SET seen_recorded_at = clock_timestamp()
            FROM shop_order o JOIN continuum_events e ON e.run_id = o.run_id AND e.type = 'activity_completed'
            WHERE o.batch = %(batch)s AND a.order_id = o.id AND e.name = 'shop.activities.' || a.step
              AND a.outcome IN ('done', 'already done')
            """,
            {"batch": batch},
        )
        return cursor.rowcount


def finished(batch: int) -> int:
    """How many orders have a run that has ended, in whatever way."""
    return scalar(
        "SELECT count(*) FROM continuum_runs r JOIN shop_order o ON o.run_id = r.id "
        "WHERE o.batch = %(batch)s AND r.completed_at IS NOT NULL",
        batch=batch,
    )


def held_by(pid: int, batch: int) -> list[UUID]:
    """The runs of unfinished orders that the worker with this process id holds."""
    return scalar(
        "SELECT coalesce(array_agg(r.id), '{}') FROM continuum_runs r JOIN shop_order o ON o.run_id = r.id "
        "JOIN continuum_workers w ON w.id = r.owner_id WHERE o.batch = %(batch)s AND w.pid = %(pid)s",
        batch=batch,
        pid=pid,
    )


def exporter(batch: int) -> int | None:
    """The process id of the worker that writes the export, if one does now and has told how far it is."""
    return scalar(
        "SELECT w.pid FROM continuum_activity_tasks t JOIN shop_export x ON x.run_id = t.run_id "
        "JOIN continuum_workers w ON w.id = t.owner_id "
        "WHERE x.batch = %(batch)s AND t.state = 'running' AND t.heartbeat_details IS NOT NULL",
        batch=batch,
    )


def seconds_to_take_over(runs: list[UUID], batch: int) -> float | None:
    """How long after the kill another worker first recorded something for one of the runs the killed one held."""
    return scalar(
        """
        SELECT extract(epoch FROM min(e.recorded_at) - k.killed_at)::float
        FROM continuum_events e,
             (SELECT min(a.seen_recorded_at) FROM shop_attempt a JOIN shop_order o ON o.id = a.order_id
              WHERE o.batch = %(batch)s) k (killed_at)
        WHERE e.run_id = ANY(%(runs)s) AND e.recorded_at > k.killed_at
        GROUP BY k.killed_at
        """,
        runs=runs,
        batch=batch,
    )
