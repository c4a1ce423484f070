"""Runs: the list, and the page that tells what one did and why it does not go on."""

import json
from datetime import UTC, datetime

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, Subquery
from django.http import Http404, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe

from continuum.admin import searching, wording
from continuum.admin.acting import entries_of
from continuum.admin.asking import ActingMixin
from continuum.admin.base import ReadOnlyAdmin
from continuum.admin.details import facts, history_page, payload_sections, tasks, waiting_lines
from continuum.admin.filters import NamespaceFilter, WorkflowFilter
from continuum.admin.pagination import CappedPaginator
from continuum.admin.payloads import with_payloads
from continuum.admin.storyline import story
from continuum.describing import events
from continuum.models import Run, Worker
from continuum.moments import aware

__all__ = ["RunAdmin"]

_WAITING_LIMIT = 4_000
_PAYLOAD_LIMIT = 100_000
_MOST_ATTRIBUTES = 6


@admin.register(Run)
class RunAdmin(ActingMixin, ReadOnlyAdmin):
    """Runs, newest first. Rows cannot be edited; runs can be acted on."""

    list_display = (
        "short_id",
        "state_chip",
        "workflow_version",
        "waiting_for",
        "started",
        "took",
        "attribute_chips",
        "namespace",
        "owner",
    )
    list_display_links = None
    list_filter = ("state", NamespaceFilter, WorkflowFilter)
    list_per_page = 50
    list_max_show_all = 0
    search_fields = ("workflow",)  # so that there is a box; what is typed there is for get_search_results
    search_help_text = searching.HELP
    ordering = ("-id",)
    paginator = CappedPaginator
    change_list_template = "admin/continuum/run/change_list.html"
    change_form_template = "admin/continuum/run/change_form.html"

    def get_queryset(self, request):
        runs = super().get_queryset(request).defer("input", "result", "error", "progress")
        owner = Worker.objects.filter(id=OuterRef("owner_id")).values("name")
        return with_payloads(runs, "waiting_on", limit=_WAITING_LIMIT).annotate(owner_name=Subquery(owner))

    def get_search_results(self, request, queryset, search_term):
        return searching.found(queryset, search_term), False

    @admin.display(description="run", ordering="id")
    def short_id(self, run):
        # Ids of one minute begin alike, so the end is what tells them apart.
        text = str(run.id)
        address = reverse(f"{self.admin_site.name}:continuum_run_change", args=[run.pk])
        return format_html('<a href="{}" title="{}"><code>{}…{}</code></a>', address, text, text[:8], text[-6:])

    @admin.display(description="state")
    def state_chip(self, run):
        label = run.get_state_display()
        short = label.partition(":")[0]
        return format_html(
            '<span class="continuum-chip continuum-state-{}" title="{}">{}</span>', run.state, label, short
        )

    @admin.display(description="workflow")
    def workflow_version(self, run):
        module, _, name = run.workflow.rpartition(".")
        shown = format_html(
            '<span class="continuum-line">{} <span class="continuum-quiet">v{}</span></span>', name, run.version
        )
        if not module:
            return shown
        return format_html('{}<br><span class="continuum-quiet continuum-small">{}</span>', shown, module)

    @admin.display(description="attributes")
    def attribute_chips(self, run):
        if not isinstance(run.attributes, dict):
            return json.dumps(run.attributes, ensure_ascii=False)
        chips = format_html_join(
            " ", "{}", ((self._chip(*pair),) for pair in list(run.attributes.items())[:_MOST_ATTRIBUTES])
        )
        more = len(run.attributes) - _MOST_ATTRIBUTES
        return format_html('{} <span class="continuum-quiet">+{}</span>', chips, more) if more > 0 else chips

    def _chip(self, name, value):
        query = searching.attribute_query(name, value)
        if query is None:
            return format_html('<span class="continuum-tag"><b>{}</b> {}</span>', name, _short(value))
        address = reverse(f"{self.admin_site.name}:continuum_run_changelist")
        link = '<a class="continuum-tag" href="{}?{}" title="Runs with this attribute"><b>{}</b> {}</a>'
        return format_html(link, address, query, name, _short(value))

    @admin.display(description="started")
    def started(self, run):
        return wording.moment(run.started_at, datetime.now(UTC))

    @admin.display(description="took")
    def took(self, run):
        if run.completed_at is None:
            return "-"
        return wording.duration(aware(run.completed_at) - aware(run.started_at))

    @admin.display(description="worker")
    def owner(self, run):
        if run.owner_id is None:
            return "-"
        return run.owner_name or f"worker {run.owner_id}"

    @admin.display(description="waiting for")
    def waiting_for(self, run):
        return format_html_join(mark_safe("<br>"), "{}", ((line,) for line in waiting_lines(run))) or "-"

    def get_fields(self, request, obj=None):
        return ()

    def get_urls(self):
        name = "continuum_run_fragment"
        fragment = path("<path:object_id>/fragment/", self.admin_site.admin_view(self.fragment_view), name=name)
        download = self.admin_site.admin_view(self.download_view)
        history = path("<path:object_id>/events.jsonl", download, name="continuum_run_events")
        return [fragment, history, *super().get_urls()]

    def download_view(self, request, object_id):
        """The whole history, a JSON object a line, as it is read from the database."""
        run = self.get_object(request, unquote(object_id))
        if run is None:
            raise Http404
        if not (self.has_view_permission(request, run) and request.user.has_perm("continuum.view_payload")):
            raise PermissionDenied
        lines = (json.dumps(event, ensure_ascii=False) + "\n" for event in events(run))
        headers = {"Content-Disposition": f'attachment; filename="{run.pk}.jsonl"'}
        return StreamingHttpResponse(lines, content_type="application/jsonl; charset=utf-8", headers=headers)

    def fragment_view(self, request, object_id):
        """The changing part of a run's page, for the script that keeps it up to date."""
        run = self.get_object(request, unquote(object_id))
        if run is None:
            raise Http404
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        return TemplateResponse(
            request, "admin/continuum/run/body.html", {"opts": self.opts, **self._story(request, run)}
        )

    def render_change_form(self, request, context, add=False, change=False, form_url="", obj=None):
        name = f"{self.admin_site.name}:continuum_run_fragment"
        query = f"?{request.GET.urlencode()}" if request.GET else ""
        context |= {
            "title": obj.workflow,
            "subtitle": None,
            "fragment": reverse(name, args=[obj.pk]) + query,
            **self._story(request, obj),
        }
        return super().render_change_form(request, context, add, change, form_url, obj)

    def _story(self, request, obj):
        may_see = request.user.has_perm("continuum.view_payload")
        return {
            "run": obj,
            "download": reverse(f"{self.admin_site.name}:continuum_run_events", args=[obj.pk]) if may_see else "",
            "state_chip": self.state_chip(obj),
            "attribute_chips": self.attribute_chips(obj),
            "why": waiting_lines(obj, with_errors=may_see),
            "facts": facts(obj, self.admin_site.name),
            "story": story(obj, self.admin_site.name),
            "buttons": self.buttons(request, obj),
            "tasks": tasks(obj),
            "entries": entries_of(obj),
            "payloads": payload_sections(obj) if may_see else None,
            "history": history_page(obj, request.GET, with_data=may_see),
        }


def _short(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"
