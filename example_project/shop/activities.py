"""What order processing does to the world: each function is one step, and may run more than once.

A worker that is killed between the end of a body and its record in the history leaves no trace of that body, so another
worker runs it again. That is why effects here are made with ``get_or_create`` under a unique constraint. ``ship`` needs
no such care: it is transactional, so what it writes and the record of its result commit together or not at all.

Failures are part of the example, and reproducible: :func:`lot` draws from the order's number in the file, never from a
random source.
"""

import asyncio
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now

from continuum import NonRetryableError, Retry, activity
from shop.models import Attempt, Dispatched, FraudReview, LedgerEntry, Order, Shipment

DATABASE = Retry(max_attempts=5, base=0.2, max_delay=5)
"""For steps that can only fail because the database is away for a moment."""


@dataclass(frozen=True)
class BasketLine:
    """One product of a basket; money in hundredths of the order's currency."""

    sku: str
    quantity: int
    cents: int


@dataclass(frozen=True)
class Basket:
    """What a workflow needs to know of an order. ``problem`` is empty when the order can be processed."""

    currency: str
    country: str
    lines: list[BasketLine]
    problem: str = ""

    @property
    def total_cents(self) -> int:
        """The price of the basket."""
        return sum(line.cents for line in self.lines)


class GatewayBusyError(Exception):
    """The payment gateway asks to come back later."""


def lot(number: str, purpose: str) -> int:
    """Draw a number that depends only on the order's number in the file and the purpose."""
    return zlib.crc32(f"{purpose}:{number.rpartition('-')[2]}".encode())


@contextmanager
def attempt(number: str, step: str) -> Iterator[Attempt]:
    """Record that a body runs for the order, and how it ends. A killed worker leaves the row ``running``."""
    order = Order.objects.filter(number=number).first()
    if order is None:
        raise NonRetryableError(f"there is no order {number}")
    row = Attempt.objects.create(order=order, step=step, worker_pid=os.getpid(), started_at=Now())
    try:
        yield row
    except Exception:
        row.outcome = Attempt.Outcome.FAILED
        raise
    else:
        if row.outcome == Attempt.Outcome.RUNNING:
            row.outcome = Attempt.Outcome.DONE
    finally:
        row.ended_at = Now()
        row.save(update_fields=["outcome", "ended_at"])


def _book(row: Attempt, kind: str, cents: int, reference: str) -> str:
    """Book an entry unless it is there already; return its reference."""
    entry, created = LedgerEntry.objects.get_or_create(
        order=row.order, kind=kind, defaults={"amount_cents": cents, "reference": reference}
    )
    if not created:
        row.outcome = Attempt.Outcome.ALREADY_DONE
        if entry.reference != reference:
            raise NonRetryableError(f"{kind} of {row.order} is booked as {entry.reference}, asked for {reference}")
    return entry.reference


@activity(retry=DATABASE)
def read_order(number: str, run_id: UUID) -> Basket:
    """Note which run processes the order, read its lines, and say whether it can be processed."""
    with attempt(number, "read_order") as row:
        Order.objects.filter(pk=row.order.pk, run_id=None).update(run_id=run_id)
        lines = [BasketLine(x.sku, x.quantity, x.quantity * x.unit_price_cents) for x in row.order.lines.all()]
        empty = [line.sku for line in lines if not line.quantity]
        problem = "the order has no lines"
        if lines:
            problem = f"quantity 0 of {', '.join(empty)}" if empty else ""
        return Basket(currency=row.order.currency, country=row.order.country, lines=lines, problem=problem)


@activity(retry=DATABASE)
def score_fraud(number: str) -> int:
    """Return how suspicious an order is, from 0 to 99."""
    with attempt(number, "score_fraud"):
        return lot(number, "fraud") % 100


@activity(timeout=timedelta(seconds=60))
async def ask_carrier(number: str) -> str:
    """Ask the carrier which service it offers. Changes nothing; one order in eleven meets a carrier that is slow."""
    await asyncio.sleep(30 if lot(number, "carrier") % 11 == 0 else settings.SHOP_LATENCY)
    return "express"


@activity(retry=Retry(max_attempts=4, base=0.3, factor=2.0), timeout=timedelta(seconds=30))
def charge_card(number: str, cents: int, reference: str) -> str:
    """Charge the customer and return the reference of the charge.

    For one order in seven the gateway is busy the first time; one card in forty-one is refused for good.
    """
    with attempt(number, "charge_card") as row:
        time.sleep(settings.SHOP_LATENCY)
        if lot(number, "card") % 41 == 0:
            raise NonRetryableError("the bank refuses this card")
        seen_busy = row.order.attempts.filter(step="charge_card", outcome=Attempt.Outcome.FAILED).exists()
        if lot(number, "gateway") % 7 == 0 and not seen_busy:
            raise GatewayBusyError("the payment gateway is busy, try again")
        return _book(row, LedgerEntry.Kind.CHARGE, cents, reference)


@activity(retry=Retry(max_attempts=4, base=0.3), timeout=timedelta(seconds=30))
def refund(number: str, cents: int, reference: str) -> str:
    """Give the money back and return the reference of the refund."""
    with attempt(number, "refund") as row:
        time.sleep(settings.SHOP_LATENCY)
        return _book(row, LedgerEntry.Kind.REFUND, -cents, reference)


@activity(retry=DATABASE)
def open_review(number: str, score: int) -> None:
    """Put the order on the list of a person who looks at suspicious orders."""
    with attempt(number, "open_review") as row:
        _, created = FraudReview.objects.get_or_create(order=row.order, defaults={"score": score})
        if not created:
            row.outcome = Attempt.Outcome.ALREADY_DONE


@activity(retry=DATABASE)
def expire_review(number: str) -> str:
    """Close a review nobody decided in time and return its verdict: a decision made at the last moment stands."""
    with attempt(number, "expire_review") as row:
        FraudReview.objects.filter(order=row.order, verdict="").update(verdict=FraudReview.Verdict.TIMED_OUT)
        return FraudReview.objects.get(order=row.order).verdict


@activity(retry=DATABASE, transactional=True)
def ship(number: str, service: str, promised_for: datetime) -> str:
    """Hand the parcel to the carrier, count its units, and return its tracking code: all of it exactly once."""
    with attempt(number, "ship") as row:
        time.sleep(settings.SHOP_LATENCY)
        if lot(number, "address") % 53 == 0:
            raise NonRetryableError("the carrier does not deliver to this address")
        order = row.order
        # Always in the same order, so that two parcels with the same products do not wait for each other in a circle.
        for line in order.lines.order_by("sku"):
            Dispatched.objects.filter(batch=order.batch, sku=line.sku).update(units=F("units") + line.quantity)
        tracking = f"PX{order.pk:09d}"
        Shipment.objects.create(order=order, tracking=tracking, service=service, promised_for=promised_for)
        return tracking


@activity(retry=DATABASE)
def close_order(number: str, state: str, note: str) -> None:
    """Write the final state of the order; writing it twice changes nothing."""
    with attempt(number, "close_order") as row:
        Order.objects.filter(pk=row.order.pk).update(state=state, note=note)
