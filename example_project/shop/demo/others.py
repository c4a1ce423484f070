"""What runs beside the orders: a batch with children, an export with heartbeats, a subscription in a chain of runs."""

from django.db import transaction
from django.db.models import Q

import continuum
from continuum import Run
from shop.demo.processes import wait_until
from shop.exports import export
from shop.models import Export, Order, Subscription
from shop.subscriptions import PERIODS_PER_RUN, Terms, subscription
from shop.workflows import BatchRequest, batch

UNKNOWN = "404"
"""An order number the shop does not know: the child that is to process it fails, and its batch goes on."""


def start_batch(orders: list[Order], number: int, review_timeout: float) -> Run:
    """Start a batch of these orders and of one that does not exist."""
    numbers = [order.number for order in orders] + [f"{number}-{UNKNOWN}"]
    return continuum.start(batch, BatchRequest(numbers, review_timeout), attributes={"file": f"batch-{number}"})


def start_export(number: int) -> Export:
    """Start an export of a batch's order lines."""
    with transaction.atomic():
        made = Export.objects.create(batch=number)
        made.run_id = continuum.start(export, made, attributes={"file": made.path.name}).id
        made.save(update_fields=["run_id"])
    return made


def start_subscription(number: int, customer: str, period_seconds: float) -> Subscription:
    """Start billing a customer, who soon wants a better plan."""
    with transaction.atomic():
        opened = Subscription.objects.create(customer=customer, batch=number)
        terms = Terms(period_seconds=period_seconds)
        opened.run_id = continuum.start(subscription, opened, terms, attributes={"customer": customer}).id
        opened.save(update_fields=["run_id"])
        continuum.signal(opened.run_id, "change_plan", "plus", delivery_id=f"upgrade-{opened.pk}")
    return opened


def end(number: int) -> bool:
    """Let the customers leave, and wait until everything beside the orders has ended; False if it does not.

    A demo of a few orders is over so soon that the first run of the chain still bills: it is waited for as well.
    """
    for opened in Subscription.objects.filter(batch=number):
        if not wait_until(opened.invoices.filter(period__gt=PERIODS_PER_RUN).exists, timeout=60):
            return False
        continuum.signal(opened.run_id, "cancel", "the demo is over", delivery_id=f"cancel-{opened.pk}")
    rows = [*Subscription.objects.filter(batch=number), *Export.objects.filter(batch=number)]
    # The runs of a chain have the id of the first one in common.
    beside = Q(correlation_id__in=[row.run_id for row in rows]) | Q(attributes__file=f"batch-{number}")
    return wait_until(lambda: not Run.objects.active().filter(beside).exists(), timeout=60)


def exported(number: int) -> list[int]:
    """The ids of the order lines in the files of a batch's finished exports, as often as they are there."""
    files = [made.path for made in Export.objects.filter(batch=number, state=Export.State.DONE)]
    return [int(row.split(",")[0]) for file in files for row in file.read_text().splitlines()]
