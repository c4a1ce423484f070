"""Worker nodes, live and gone."""

import json
from datetime import UTC, datetime

from django.contrib import admin
from django.db.models import Count, IntegerField, OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.utils.html import format_html

from continuum.admin import wording
from continuum.admin.base import ReadOnlyAdmin
from continuum.models import Run, Worker
from continuum.moments import aware

__all__ = ["WorkerAdmin"]


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Who works, since when, and on how many runs."""

    list_display = ("name", "state_chip", "host", "process", "heartbeat", "live_runs", "started", "stopped")
    list_filter = ("state",)
    search_fields = ("name", "host")
    ordering = ("-id",)
    fields = (
        "name",
        "state_chip",
        "host",
        "process",
        "started",
        "heartbeat",
        "expires_at",
        "stopped",
        "live_runs",
        "served_queues",
        "about",
    )

    def get_queryset(self, request):
        # Through the partial index on owner_id, which holds owned runs only.
        owned = Run.objects.filter(owner_id=OuterRef("id")).order_by().values("owner_id")
        live = Subquery(owned.annotate(number=Count("*")).values("number"), output_field=IntegerField())
        return super().get_queryset(request).annotate(live=Coalesce(live, 0))

    @admin.display(description="state", ordering="state")
    def state_chip(self, worker):
        lapsed = worker.state != Worker.State.DEAD and aware(worker.expires_at) < datetime.now(UTC)
        state, label = ("lapsed", "lease lapsed") if lapsed else (worker.state, worker.get_state_display())
        return format_html('<span class="continuum-chip continuum-state-{}">{}</span>', state, label)

    @admin.display(description="pid")
    def process(self, worker):
        return str(worker.pid)  # no language puts separators into it

    @admin.display(description="heartbeat", ordering="heartbeat_at")
    def heartbeat(self, worker):
        return wording.moment(worker.heartbeat_at, datetime.now(UTC))

    @admin.display(description="live runs")
    def live_runs(self, worker):
        return worker.live

    @admin.display(description="queues")
    def served_queues(self, worker):
        return _pretty(worker.queues)

    @admin.display(description="about")
    def about(self, worker):
        return _pretty(worker.info)

    @admin.display(description="started", ordering="started_at")
    def started(self, worker):
        return wording.moment(worker.started_at, datetime.now(UTC))

    @admin.display(description="stopped", ordering="stopped_at")
    def stopped(self, worker):
        return wording.moment(worker.stopped_at, datetime.now(UTC))


def _pretty(value):
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return format_html('<pre class="continuum-value">{}</pre>', text)
