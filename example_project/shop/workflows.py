"""The shop's processes: orders and batches of them here, subscriptions and exports in modules of their own."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.conf import settings

from continuum import (
    ActivityError,
    Child,
    ChildError,
    SignalTimeoutError,
    as_completed,
    logger,
    now,
    run_info,
    saga,
    set_progress,
    side_effect,
    sleep,
    start_child,
    uuid4,
    wait_signal,
    workflow,
)
from shop.activities import (
    Basket,
    ask_carrier,
    charge_card,
    close_order,
    expire_review,
    open_review,
    read_order,
    refund,
    score_fraud,
    ship,
)
from shop.exports import export
from shop.subscriptions import subscription

__all__ = ["batch", "export", "order_flow", "subscription"]

SUSPICIOUS = 88
"""Fraud scores from here on (of 0 to 99) need a person's decision."""

CARRIER_PATIENCE = timedelta(seconds=2)
"""How long the carrier may think before the shop settles for the standard service."""

DELIVERY_DAYS = {"express": 2, "standard": 5}


@dataclass(frozen=True)
class OrderRequest:
    """What starts a run. ``review_timeout`` is how long a fraud review may take, in seconds."""

    number: str
    review_timeout: float = 86_400.0


@dataclass(frozen=True)
class OrderResult:
    """How the order ended; ``state`` is one of the final states of ``shop.models.Order``."""

    number: str
    state: str
    note: str = ""
    tracking: str = ""


class NotApprovedError(Exception):
    """A person, or the clock, has decided against the order."""


def packing_seconds() -> float:
    """How long the warehouse needs for a parcel, as configured now."""
    return settings.SHOP_PACKING_SECONDS


async def carrier_service(number: str) -> str:
    """The carrier's offer, or the standard service when the carrier takes too long."""
    try:
        async with asyncio.timeout(CARRIER_PATIENCE.total_seconds()):
            return await ask_carrier(number)
    except TimeoutError:
        return "standard"


async def approval(request: OrderRequest, score: int) -> None:
    """Wait for a person to approve a suspicious order, or raise :class:`NotApprovedError`."""
    logger.info("order %s needs a review: fraud score %d, run %s", request.number, score, run_info().run_id)
    await open_review(request.number, score)
    set_progress(f"waiting for a fraud review (score {score})")
    try:
        verdict = await wait_signal("fraud_review", timeout=request.review_timeout)
    except SignalTimeoutError:
        verdict = await expire_review(request.number)
    if verdict != "approved":
        raise NotApprovedError(f"fraud review: {verdict}")


async def to_its_end(step: Coroutine[Any, Any, Any], *, too_late: bool = False) -> Any:
    """Await a step that is not to be left half-way: a cancellation waits until it is known what came of it.

    Then it is raised, or, if ``too_late`` says so, forgotten.
    """
    task = asyncio.create_task(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        result = await task
        if too_late:
            return result
        raise


async def closed(number: str, state: str, note: str = "", tracking: str = "") -> OrderResult:
    """Write the order's final state and make the run's result of it. There is nothing left to cancel then."""
    await to_its_end(close_order(number, state, note), too_late=True)
    return OrderResult(number, state, note, tracking)


async def paid_and_shipped(request: OrderRequest, basket: Basket, score: int, service: str) -> str:
    """Charge, look for fraud, pack and ship; return the tracking code. Whatever goes wrong, the money goes back."""
    number, reference = request.number, uuid4().hex
    async with saga():
        set_progress("charging")
        charge = charge_card(number, basket.total_cents, f"charge-{reference}")
        await to_its_end(charge.compensated_by(refund.bind(number, basket.total_cents, f"refund-{reference}")))
        if score >= SUSPICIOUS:
            await approval(request, score)

        set_progress("packing")
        # The setting may have changed by the time this history is replayed: the value first seen counts.
        await sleep(side_effect(packing_seconds))

        set_progress("shipping")
        parcel = ship(number, service, now() + timedelta(days=DELIVERY_DAYS[service]))
        return await to_its_end(parcel, too_late=True)


async def processed(request: OrderRequest, basket: Basket, score: int, service: str) -> OrderResult:
    """Take an order to one of its final states."""
    number = request.number
    try:
        tracking = await paid_and_shipped(request, basket, score, service)
    except NotApprovedError as error:
        return await closed(number, "refunded", str(error))
    except ActivityError as error:
        return await closed(number, "declined" if error.activity == charge_card.name else "refunded", error.message)
    return await closed(number, "shipped", tracking=tracking)


@workflow
async def order_flow(request: OrderRequest) -> OrderResult:
    """Process one order, from reading it to its final state, also when it is cancelled on the way."""
    number = request.number
    try:
        set_progress("reading the order")
        basket = await read_order(number, run_info().run_id)
        if basket.problem:
            return await closed(number, "invalid", basket.problem)
        set_progress("asking the carrier, looking for fraud")
        score, service = await asyncio.gather(score_fraud(number), carrier_service(number))
        return await processed(request, basket, score, service)
    except asyncio.CancelledError:
        # A run that is being cancelled may still do what has to be done; then it goes on with being cancelled.
        await close_order(number, "cancelled", "cancelled while it was processed")
        raise


@dataclass(frozen=True)
class BatchRequest:
    """The orders of a file, by number."""

    numbers: list[str]
    review_timeout: float = 86_400.0


@dataclass(frozen=True)
class BatchResult:
    """How many orders ended in which state, and why those failed whose runs did."""

    states: dict[str, int]
    failures: dict[str, str] = field(default_factory=dict)


async def outcome(number: str, child: Child) -> OrderResult:
    """What became of an order; a run that failed or was cancelled is an outcome like any other."""
    try:
        return await child
    except ChildError as error:
        return OrderResult(number, error.state, error.message)


@workflow
async def batch(request: BatchRequest) -> BatchResult:
    """Process the orders of a file, each in a run of its own, all at the same time."""
    outcomes = []
    for number in request.numbers:
        child = await start_child(
            order_flow, OrderRequest(number, request.review_timeout), id=number, attributes={"order": number}
        )
        outcomes.append(outcome(number, child))

    states: Counter[str] = Counter()
    failures = {}
    for finished in as_completed(outcomes):
        result = await finished
        states[result.state] += 1
        if result.state == "failed":
            failures[result.number] = result.note
        set_progress(f"{states.total()} of {len(outcomes)} orders have ended")
    return BatchResult(dict(states), failures)
