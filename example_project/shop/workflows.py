"""Order processing, as one function that survives the death of its worker."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings

from continuum import (
    ActivityError,
    SignalTimeoutError,
    logger,
    now,
    run_info,
    set_progress,
    side_effect,
    sleep,
    uuid4,
    wait_signal,
    workflow,
)
from shop.activities import (
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


async def fraud_verdict(request: OrderRequest, score: int) -> str:
    """What a person decides about a suspicious order, or ``timed out``."""
    logger.info("order %s needs a review: fraud score %d, run %s", request.number, score, run_info().run_id)
    await open_review(request.number, score)
    set_progress(f"waiting for a fraud review (score {score})")
    try:
        return await wait_signal("fraud_review", timeout=request.review_timeout)
    except SignalTimeoutError:
        return await expire_review(request.number)


async def closed(number: str, state: str, note: str = "", tracking: str = "") -> OrderResult:
    """Write the order's final state and make the run's result of it."""
    await close_order(number, state, note)
    return OrderResult(number, state, note, tracking)


@workflow
async def order_flow(request: OrderRequest) -> OrderResult:
    """Validate, charge, look for fraud, pack and ship one order; refund it when a person rejects it."""
    number = request.number
    set_progress("reading the order")
    basket = await read_order(number)
    if basket.problem:
        return await closed(number, "invalid", basket.problem)

    set_progress("asking the carrier, looking for fraud")
    score, service = await asyncio.gather(score_fraud(number), carrier_service(number))

    set_progress("charging")
    reference = uuid4().hex
    try:
        await charge_card(number, basket.total_cents, f"charge-{reference}")
    except ActivityError as error:
        return await closed(number, "declined", error.message)

    if score >= SUSPICIOUS:
        verdict = await fraud_verdict(request, score)
        if verdict != "approved":
            set_progress("refunding")
            await refund(number, basket.total_cents, f"refund-{reference}")
            return await closed(number, "refunded", f"fraud review: {verdict}")

    set_progress("packing")
    # The setting may have changed by the time this history is replayed: the value first seen counts.
    await sleep(side_effect(packing_seconds))

    set_progress("shipping")
    tracking = await ship(number, service, now() + timedelta(days=DELIVERY_DAYS[service]))
    return await closed(number, "shipped", tracking=tracking)
