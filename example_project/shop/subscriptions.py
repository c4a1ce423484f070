"""Subscriptions: a process without an end, in runs of a few periods each.

A run's history grows with each period, so after some of them it continues as a new run, which begins with what it has
to know and an empty history. Whoever holds the first run's id reaches the one that is live.
"""

import asyncio
from dataclasses import dataclass, replace

from continuum import (
    ModelRef,
    Retry,
    SignalTimeoutError,
    activity,
    activity_info,
    continue_as_new,
    set_progress,
    wait_signal,
    workflow,
)
from shop.models import Invoice, Subscription

PRICES = {"basic": 900, "plus": 1900}
"""What a period costs, in cents."""

PERIODS_PER_RUN = 5
"""After so many periods a run continues as a new one."""


@dataclass(frozen=True)
class Terms:
    """What a run begins with. ``period_seconds`` is a month in real life."""

    plan: str = "basic"
    period: int = 1
    period_seconds: float = 30 * 86_400.0


@activity(
    retry=Retry(max_attempts=8, base=1.0),
    idempotency_key=lambda subscription, period, plan: f"subscription-{subscription.pk}-{period}",
)
def charge_period(subscription: Subscription, period: int, plan: str) -> str:
    """Charge one period and return the reference of the charge: of each period there is one, whichever run asks.

    The key goes on to the gateway (here: a unique column), which makes of two charges one: a worker may die after the
    charge and before its record.
    """
    reference = activity_info().idempotency_key
    Invoice.objects.get_or_create(
        reference=reference,
        defaults={"subscription": subscription, "period": period, "plan": plan, "amount_cents": PRICES[plan]},
    )
    return reference


@activity(retry=Retry(max_attempts=8, base=1.0), transactional=True)
def end_subscription(subscription: Subscription) -> int:
    """Write that the customer has left; return how many periods they paid."""
    subscription.state = Subscription.State.CANCELLED
    subscription.save(update_fields=["state"])
    return subscription.invoices.count()


class Plan:
    """The plan that counts for the next period; the customer may change it at any time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            self.name = await wait_signal("change_plan")


@workflow(signals={"change_plan": str, "cancel": str})
async def subscription(customer: ModelRef, terms: Terms) -> int:
    """Bill a customer each period until they cancel; the result is the number of periods they paid."""
    plan = Plan(terms.plan)
    for period in range(terms.period, terms.period + PERIODS_PER_RUN):
        await charge_period(customer, period, plan.name)
        set_progress(f"period {period}, plan {plan.name}")
        try:
            await wait_signal("cancel", timeout=terms.period_seconds)
        except SignalTimeoutError:
            continue
        return await end_subscription(customer)
    continue_as_new(customer, replace(terms, plan=plan.name, period=terms.period + PERIODS_PER_RUN))
