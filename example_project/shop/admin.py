"""The shop in the admin: read the orders, decide the fraud reviews."""

from django.contrib import admin, messages
from django.urls import reverse
from django.utils.html import format_html

from continuum import RunNotActiveError
from shop.models import (
    Attempt,
    Export,
    FraudReview,
    Invoice,
    LedgerEntry,
    Order,
    OrderLine,
    Shipment,
    Subscription,
)
from shop.reviews import decide


class ReadOnly:
    """Rows written by the shop's workflow are shown, not edited."""

    def has_add_permission(self, request, obj=None):
        return False

    def has_change_permission(self, request, obj=None):
        return False

    def has_delete_permission(self, request, obj=None):
        return False


class LineInline(ReadOnly, admin.TabularInline):
    model = OrderLine
    fields = ("position", "sku", "product", "quantity", "unit_price_cents")


class LedgerInline(ReadOnly, admin.TabularInline):
    model = LedgerEntry
    fields = ("kind", "amount_cents", "reference", "booked_at")


class ShipmentInline(ReadOnly, admin.TabularInline):
    model = Shipment
    fields = ("tracking", "service", "promised_for", "shipped_at")


class AttemptInline(ReadOnly, admin.TabularInline):
    model = Attempt
    fields = ("step", "outcome", "worker_pid", "started_at", "ended_at")
    ordering = ("started_at",)


class InvoiceInline(ReadOnly, admin.TabularInline):
    model = Invoice
    fields = ("period", "plan", "amount_cents", "reference", "booked_at")


class RunLink:
    """A column that leads to the run behind a row."""

    @admin.display(description="workflow run")
    def run(self, row):
        """A link to the run."""
        if row.run_id is None:
            return "-"
        return format_html('<a href="{}">{}</a>', reverse("admin:continuum_run_change", args=[row.run_id]), row.run_id)


@admin.register(Order)
class OrderAdmin(RunLink, ReadOnly, admin.ModelAdmin):
    """An order with everything that happened to it."""

    list_display = ("number", "customer", "country", "state", "note", "run")
    list_filter = ("state", "batch", "country")
    ordering = ("-batch", "number")
    search_fields = ("number", "customer", "run_id")
    inlines = (LineInline, LedgerInline, ShipmentInline, AttemptInline)


@admin.register(Subscription)
class SubscriptionAdmin(RunLink, ReadOnly, admin.ModelAdmin):
    """A subscription with what was paid. The link leads to the first run; its page leads on along the chain."""

    list_display = ("customer", "state", "run")
    list_filter = ("state",)
    ordering = ("-pk",)
    inlines = (InvoiceInline,)


@admin.register(Export)
class ExportAdmin(RunLink, ReadOnly, admin.ModelAdmin):
    """The files that were made, or are being made."""

    list_display = ("batch", "state", "lines", "resumed_after", "path", "run")
    list_filter = ("state",)
    ordering = ("-pk",)


@admin.register(FraudReview)
class FraudReviewAdmin(ReadOnly, admin.ModelAdmin):
    """Open reviews come first; the two actions send the signal the run waits for."""

    list_display = ("order", "customer", "score", "verdict", "opened_at")
    list_filter = ("verdict",)
    empty_value_display = "open"
    list_select_related = ("order",)
    ordering = ("verdict", "-score")
    actions = ("approve", "reject")

    @admin.display(ordering="order__customer")
    def customer(self, review):
        return review.order.customer

    def has_decide_permission(self, request):
        """Deciding is more than looking: it needs the permission to change reviews."""
        return request.user.has_perm("shop.change_fraudreview")

    @admin.action(permissions=["decide"], description="Approve: the order ships")
    def approve(self, request, reviews):
        self._decide(request, reviews, FraudReview.Verdict.APPROVED)

    @admin.action(permissions=["decide"], description="Reject: the money goes back")
    def reject(self, request, reviews):
        self._decide(request, reviews, FraudReview.Verdict.REJECTED)

    def _decide(self, request, reviews, verdict):
        decided = 0
        for review in reviews.select_related("order"):
            try:
                decided += decide(review, verdict)
            except RunNotActiveError:
                self.message_user(request, f"Order {review.order} has ended already.", messages.WARNING)
        self.message_user(request, f"{verdict.capitalize()}: {decided}.")
