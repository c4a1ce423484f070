"""The shop's tables.

Two kinds of rows make the demo's claims checkable. *Effects* (ledger entries, shipments, reviews) carry unique
constraints, so that a doubled effect is an error, not a wrong number; the counter of :class:`Dispatched` is the
exception, on purpose. *Attempts* say that an activity's body ran, and how that ended; they are never deduplicated, so a
body that ran twice shows.
"""

from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models import F, Q


class Order(models.Model):
    """One customer's order; ``run_id`` is the workflow run that processes it."""

    class State(models.TextChoices):
        """Where the order stands; every state but ``NEW`` is final."""

        NEW = "new"
        SHIPPED = "shipped"
        REFUNDED = "refunded"
        DECLINED = "declined"
        INVALID = "invalid"
        CANCELLED = "cancelled"

    number = models.CharField(max_length=32, unique=True)
    batch = models.PositiveIntegerField(db_index=True, help_text="Which demo placed it.")
    ordered_at = models.DateTimeField()
    customer = models.CharField(max_length=100)
    country = models.CharField(max_length=2)
    currency = models.CharField(max_length=3)
    state = models.CharField(max_length=16, choices=State.choices, default=State.NEW)
    note = models.CharField(max_length=200, blank=True)
    run_id = models.UUIDField(null=True, unique=True, editable=False)

    class Meta:
        ordering = ("number",)

    def __str__(self):
        return self.number

    @property
    def total_cents(self) -> int:
        """The sum of the lines, in the currency's hundredths."""
        return sum(line.quantity * line.unit_price_cents for line in self.lines.all())


class OrderLine(models.Model):
    """One product of an order."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    position = models.PositiveSmallIntegerField()
    sku = models.CharField(max_length=32)
    product = models.CharField(max_length=100)
    quantity = models.PositiveIntegerField()
    unit_price_cents = models.PositiveIntegerField()

    class Meta:
        ordering = ("order", "position")
        constraints = (models.UniqueConstraint(fields=("order", "position"), name="one_line_per_position"),)

    def __str__(self):
        return f"{self.quantity} x {self.product}"


class LedgerEntry(models.Model):
    """Money that moved: a charge is positive, a refund negative; at most one of each for an order."""

    class Kind(models.TextChoices):
        """The direction of the money."""

        CHARGE = "charge"
        REFUND = "refund"

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="ledger")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    amount_cents = models.BigIntegerField()
    reference = models.CharField(max_length=40, unique=True)
    booked_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "ledger entries"
        constraints = (
            models.UniqueConstraint(fields=("order", "kind"), name="one_entry_per_order_and_kind"),
            models.CheckConstraint(
                condition=Q(kind="charge", amount_cents__gt=0) | Q(kind="refund", amount_cents__lt=0),
                name="charges_positive_refunds_negative",
            ),
        )

    def __str__(self):
        return f"{self.kind} {self.reference}"


class FraudReview(models.Model):
    """A person's decision about a suspicious order; the decision travels to the run as a signal."""

    class Verdict(models.TextChoices):
        """What was decided; empty while it is open."""

        APPROVED = "approved"
        REJECTED = "rejected"
        TIMED_OUT = "timed out"

    order = models.OneToOneField(Order, on_delete=models.CASCADE, related_name="review")
    score = models.PositiveSmallIntegerField()
    verdict = models.CharField(max_length=16, choices=Verdict.choices, blank=True)
    opened_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return f"review of {self.order_id}"


class Shipment(models.Model):
    """The parcel of an order: one at most."""

    order = models.OneToOneField(Order, on_delete=models.CASCADE, related_name="shipment")
    tracking = models.CharField(max_length=40, unique=True)
    service = models.CharField(max_length=16)
    promised_for = models.DateTimeField()
    shipped_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return self.tracking


class Dispatched(models.Model):
    """How many units of a product the orders of a batch have shipped: a bare counter.

    No constraint notices if one is added twice. It is right because ``ship`` takes effect exactly once.
    """

    batch = models.PositiveIntegerField()
    sku = models.CharField(max_length=32)
    units = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = verbose_name_plural = "units dispatched"
        constraints = (models.UniqueConstraint(fields=("batch", "sku"), name="one_counter_per_batch_and_product"),)

    def __str__(self):
        return f"{self.units} x {self.sku}"


class Subscription(models.Model):
    """A customer who pays once a period until they cancel; ``run_id`` is the first run of the chain that bills them."""

    class State(models.TextChoices):
        """Whether the customer still pays."""

        ACTIVE = "active"
        CANCELLED = "cancelled"

    customer = models.CharField(max_length=100)
    batch = models.PositiveIntegerField(default=0, help_text="Which demo opened it.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)
    run_id = models.UUIDField(null=True, unique=True, editable=False)

    def __str__(self):
        return f"{self.customer} ({self.state})"


class Invoice(models.Model):
    """One period of a subscription, paid. The reference is the key the gateway knows the charge by."""

    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="invoices")
    period = models.PositiveIntegerField()
    plan = models.CharField(max_length=16)
    amount_cents = models.PositiveIntegerField()
    reference = models.CharField(max_length=100, unique=True)
    booked_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("subscription", "period")

    def __str__(self):
        return self.reference


class Export(models.Model):
    """A file that is made of a batch's order lines; ``run_id`` is the run that writes it."""

    class State(models.TextChoices):
        """How far the file is."""

        WRITING = "writing"
        DONE = "done"
        CANCELLED = "cancelled"

    batch = models.PositiveIntegerField()
    state = models.CharField(max_length=16, choices=State.choices, default=State.WRITING)
    lines = models.PositiveIntegerField(default=0)
    resumed_after = models.PositiveIntegerField(null=True, help_text="The line after which the last attempt went on.")
    run_id = models.UUIDField(null=True, unique=True, editable=False)

    def __str__(self):
        return f"order lines of batch {self.batch} ({self.state})"

    @property
    def path(self) -> Path:
        """Where the finished file is."""
        return settings.SHOP_EXPORTS_DIR / f"order-lines-{self.batch}-{self.pk}.csv"


class Attempt(models.Model):
    """The body of an activity ran. A row that stays ``RUNNING`` belongs to a worker that died in the middle of it."""

    class Outcome(models.TextChoices):
        """How the body ended."""

        RUNNING = "running"
        DONE = "done"
        ALREADY_DONE = "already done"
        FAILED = "failed"

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="attempts")
    step = models.CharField(max_length=32)
    outcome = models.CharField(max_length=16, choices=Outcome.choices, default=Outcome.RUNNING)
    worker_pid = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    seen_recorded_at = models.DateTimeField(
        null=True,
        help_text="When the demo saw the result in the run's history.",
    )

    class Meta:
        indexes = (models.Index(F("order"), F("step"), name="attempts_of_a_step"),)

    def __str__(self):
        return f"{self.step} ({self.outcome})"
