"""Decisions about suspicious orders: the row and the signal commit together."""

from django.db import transaction

import continuum
from shop.models import FraudReview


def decide(review: FraudReview, verdict: str) -> bool:
    """Record a decision and send it to the order's run; False if the review was closed already.

    Args:
        review: an open review.
        verdict: ``approved`` or ``rejected``.

    Raises:
        RunNotActiveError: the run has ended, so there is nothing left to decide; the row is left as it was.
    """
    with transaction.atomic():
        if not FraudReview.objects.filter(pk=review.pk, verdict="").update(verdict=verdict):
            return False
        return continuum.signal(review.order.run_id, "fraud_review", verdict, delivery_id=f"review-{review.pk}")
