"""The dashboard: what is wrong, who works, what is under way, what has ended lately, what waits longest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core import checks
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.db.models import Count, IntegerField, OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.text import capfirst

from continuum import health, overview
from continuum.admin import wording
from continuum.admin.base import ReadOnlyAdmin
from continuum.conf import settings as continuum_settings
from continuum.models import Dashboard, Run, Worker
from continuum.moments import aware
from continuum.redaction import Shown, redacted
from continuum.surroundings import complaint

__all__ = ["DashboardAdmin"]

_STATES = ("completed", "failed", "cancelled")
_LIVE_STATES = ("pending", "running", "suspended", "stuck_unknown_version")
_MOST_ROWS = 15
_MOST_WORKERS = 50
# The height of a plot in its own units.
_HEIGHT = 100
# Where a check that found something leads to, as a query of the list of runs.
_LEADS = {
    "stuck": {"state__exact": "stuck_unknown_version"},
    "dead-letters": {"state__exact": "failed"},
    "overdue": {"state__exact": "suspended"},
    "timers": {"state__exact": "suspended"},
    "wakes": {"state__exact": "suspended"},
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a column of a plot: a rectangle, and the class it is of."""

    x: str
    y: str
    width: str
    height: str
    kind: str


@dataclass(frozen=True, slots=True)
class Column:
    """A slice of time: its parts, and what it holds in words."""

    bars: list[Bar]
    title: str
    x: str
    width: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Columns over time, with what the axis says."""

    columns: list[Column]
    most: int
    began: str
    ended: str
    totals: list[tuple[str, int, str]]


@admin.register(Dashboard)
class DashboardAdmin(ReadOnlyAdmin):
    """One page in place of a list."""

    def get_urls(self):
        view = self.admin_site.admin_view(self.fragment_view)
        return [path("fragment/", view, name="continuum_dashboard_fragment"), *super().get_urls()]

    def has_view_permission(self, request, obj=None):
        return request.user.has_perm("continuum.view_run")

    def has_module_permission(self, request):
        return self.has_view_permission(request)

    def changelist_view(self, request, extra_context=None):
        if not self.has_view_permission(request):
            raise PermissionDenied
        fragment = reverse(f"{self.admin_site.name}:continuum_dashboard_fragment")
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": capfirst(self.opts.verbose_name_plural),
            "media": self.media,
            "fragment": f"{fragment}?{request.GET.urlencode()}" if request.GET else fragment,
            **self._facts_or_trouble(request),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/continuum/dashboard/change_list.html", context)

    def check(self, **kwargs):
        found = super().check(**kwargs)
        if not self.admin_site.is_registered(Run):
            what = f"The admin site {self.admin_site.name!r} has Continuum's dashboard, but not the runs it leads to."
            hint = "Register continuum.models.Run with continuum.admin.RunAdmin there."
            found.append(checks.Error(what, hint=hint, obj=self.__class__, id="continuum.E013"))
        return found

    def _address_of(self, model):
        """Return where the list of a model's rows is; nothing if this site has none."""
        if not self.admin_site.is_registered(model):
            return ""
        return reverse(f"{self.admin_site.name}:{model._meta.app_label}_{model._meta.model_name}_changelist")

    def fragment_view(self, request):
        """The changing part, for the script that keeps the page up to date."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return TemplateResponse(request, "admin/continuum/dashboard/body.html", self._facts_or_trouble(request))

    def _facts_or_trouble(self, request):
        try:
            return self._facts(request)
        except DatabaseError as error:
            # Whoever looks here wants to know what is wrong, more than anything when it is this.
            return {"trouble": complaint(continuum_settings.DATABASE, error)}

    def _facts(self, request):
        alias = continuum_settings.DATABASE
        site = self.admin_site.name
        runs = reverse(f"{site}:continuum_run_changelist")
        range_ = overview.RANGES.get(request.GET.get("range", ""), overview.RANGES["1h"])
        now = datetime.now(UTC)
        examined = _in_time(lambda: health.examine(using=alias))
        ended = _in_time(lambda: overview.ended(range_, now=now, using=alias))
        live = _in_time(lambda: overview.live(using=alias))
        return {
            "now": date_format(timezone.localtime(now), "H:i:s"),
            "runs_address": runs,
            "checks": [
                (check, f"{runs}?{urlencode(_LEADS[check.name])}" if check.name in _LEADS else "")
                for check in (examined.checks if examined else ())
                if check.status is not health.Status.OK
            ],
            "checked": len(examined.checks) if examined else 0,
            "status": examined.status.value if examined else "",
            "ranges": [(name, name == range_.name) for name in overview.RANGES],
            "plot": _plot(ended, range_) if ended else None,
            "ended": _ended_rows(ended, runs) if ended else None,
            "live": _live_rows(live, runs, now) if live is not None else None,
            "live_states": _LIVE_STATES,
            "live_total": sum(each.total for each in live or ()),
            "waits": _in_time(lambda: _waits(alias, site, now, live)),
            "queues": [
                (each, wording.duration(timedelta(seconds=each.age)) if each.due else "-")
                for each in _in_time(lambda: overview.queues(using=alias)) or ()
            ],
            "workers": _workers(alias, now),
            "workers_address": self._address_of(Worker),
        }


def _in_time(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except TimeoutError:
        return None  # the page says that it took too long


def _plot(ended: overview.Ended, range_: overview.Range) -> Plot:
    most = max((counted.total() for counted in ended.slices), default=0)
    width = 1000 / range_.slices
    columns = []
    for number, counted in enumerate(ended.slices):
        bars, base = [], float(_HEIGHT)
        for state in _STATES:
            if counted[state]:
                height = counted[state] / most * _HEIGHT
                base -= height
                bars.append(Bar(_f(number * width), _f(base), _f(width * 0.86), _f(height), state))
        began = timezone.localtime(ended.since + range_.slice * number)
        words = ", ".join(f"{counted[state]} {state}" for state in _STATES if counted[state]) or "nothing ended"
        columns.append(Column(bars, f"{_clock(began, range_)}: {words}", _f(number * width), _f(width)))
    totals = sum(ended.slices, Counter())
    return Plot(
        columns,
        most,
        _clock(timezone.localtime(ended.since), range_),
        _clock(timezone.localtime(ended.until), range_),
        [(state, totals[state], _rate(totals[state], range_)) for state in _STATES],
    )


def _ended_rows(ended: overview.Ended, runs: str) -> list[dict[str, Any]]:
    ranked = sorted(ended.workflows.items(), key=lambda item: (-item[1]["failed"], -item[1].total(), item[0]))
    return [
        {
            "workflow": name,
            "address": f"{runs}?{urlencode({'workflow': name})}",
            "failed_address": f"{runs}?{urlencode({'workflow': name, 'state__exact': 'failed'})}",
            "counts": [(state, counted[state]) for state in _STATES],
            "took": wording.duration(timedelta(seconds=ended.seconds[name])),
        }
        for name, counted in ranked[:_MOST_ROWS]
    ]


def _live_rows(live: list[overview.Live], runs: str, now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "workflow": each.workflow,
            "address": f"{runs}?{urlencode({'workflow': each.workflow})}",
            "counts": [
                (state, each.states[state], f"{runs}?{urlencode({'workflow': each.workflow, 'state__exact': state})}")
                for state in _LIVE_STATES
            ],
            "oldest": wording.moment(each.oldest, now),
        }
        for each in live[:_MOST_ROWS]
    ]


def _waits(alias: str, site: str, now: datetime, live: list[overview.Live] | None) -> list[dict[str, Any]]:
    since = min((each.oldest for each in live or ()), default=None)
    return [
        {
            "run": run,
            "short": f"{str(run.id)[:8]}…{str(run.id)[-6:]}",
            "address": reverse(f"{site}:continuum_run_change", args=[run.pk]),
            "started": wording.moment(run.started_at, now),
            "why": "code that fits its history"
            if run.state == Run.State.STUCK_UNKNOWN_VERSION
            else "; ".join(wording.waits(_seen(run), now)),
        }
        for run in overview.oldest_waits(since=since, using=alias)
    ]


def _seen(run: Run) -> Any:
    shown = Shown(field="waiting_on", run_id=run.id, workflow=run.workflow, namespace=run.namespace)
    return redacted(run.waiting_on, shown)


def _workers(alias: str, now: datetime) -> list[dict[str, Any]]:
    owned = Run.objects.using(alias).filter(owner_id=OuterRef("id")).order_by().values("owner_id")
    number = Subquery(owned.annotate(number=Count("*")).values("number"), output_field=IntegerField())
    workers = Worker.objects.using(alias).exclude(state=Worker.State.DEAD).annotate(live=Coalesce(number, 0))
    return [
        {
            "worker": worker,
            "state": "lapsed" if (expires := aware(worker.expires_at)) < now else worker.state,
            "label": "lease lapsed" if expires < now else worker.get_state_display(),
            "heartbeat": wording.moment(worker.heartbeat_at, now),
            "lease": wording.ago(expires, now),
            "queues": ", ".join(map(str, worker.queues)) if worker.queues else "all",
        }
        for worker in workers.order_by("name")[:_MOST_WORKERS]
    ]


def _clock(moment: datetime, range_: overview.Range) -> str:
    return date_format(moment, "H:i" if range_.length <= timedelta(days=1) else "D H:i")


def _rate(number: int, range_: overview.Range) -> str:
    a_minute = number / (range_.length.total_seconds() / 60)
    return f"{a_minute:.1f} a minute" if a_minute >= 0.1 else ""


def _f(number: float) -> str:
    # Text, so that no locale puts a comma where SVG wants a point.
    return f"{number:.2f}"
