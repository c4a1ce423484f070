"""The person of the demo who decides fraud reviews: reproducible, and sometimes away from the desk."""

from continuum import RunNotActiveError
from shop.activities import lot
from shop.models import FraudReview
from shop.reviews import decide


def opinion(number: str) -> str | None:
    """Six in ten are approved, three rejected, and one is never looked at."""
    share = lot(number, "review") % 10
    if share == 9:
        return None
    return FraudReview.Verdict.APPROVED if share < 6 else FraudReview.Verdict.REJECTED


def decide_open_reviews(batch: int) -> int:
    """Decide what is open and wants a decision; return how many signals were sent."""
    sent = 0
    for review in FraudReview.objects.filter(order__batch=batch, verdict="").select_related("order"):
        verdict = opinion(review.order.number)
        if verdict is None:
            continue
        try:
            sent += decide(review, verdict)
        except RunNotActiveError:
            continue  # it timed out a moment ago
    return sent
