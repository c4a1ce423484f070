"""The pages that ask before something is done to runs, and then have it done."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse

from continuum.admin.acting import ACTIONS, Action, act
from continuum.conf import settings as continuum_settings

__all__ = ["ActingMixin"]

# Runs acted on by one request: each takes a transaction.
MOST_AT_ONCE = 500
_MOST_LISTED = 20
_MOST_ERRORS = 5


def _ask_for_several(action: Action, model_admin: Any, request: Any, queryset: Any) -> Any:
    """What Django calls when something is chosen above the list."""
    runs = list(queryset.order_by("-id")[: MOST_AT_ONCE + 1])
    if len(runs) > MOST_AT_ONCE:
        text = f"Choose at most {MOST_AT_ONCE} runs at once; manage.py continuum_runs takes as many as you like."
        messages.error(request, text)
        return None
    confirmed = "confirmed" in request.POST
    form = action.ask(runs, request.POST if confirmed else None)
    if not (confirmed and form.is_valid()):
        title = f"{action.label}: {len(runs)} run{'' if len(runs) == 1 else 's'}"
        return model_admin.ask(request, action, form, runs, title=title, several=True)
    alias = continuum_settings.DATABASE
    outcomes = [act(action, run, form.cleaned_data, request.user, alias) for run in runs]
    refused = [outcome for outcome in outcomes if outcome.error]
    if done := len(outcomes) - len(refused):
        messages.success(request, f"{action.label}: done for {done} run{'' if done == 1 else 's'}.")
    for outcome in refused[:_MOST_ERRORS]:
        messages.error(request, f"{outcome.run.pk}: {outcome.error}")
    if len(refused) > _MOST_ERRORS:
        messages.error(request, f"{len(refused) - _MOST_ERRORS} more were refused.")
    return None


def _for_several(action: Action) -> Any:
    """Return an action as the list of Django's admin wants it."""

    def ask(model_admin: Any, request: Any, queryset: Any) -> Any:
        return _ask_for_several(action, model_admin, request, queryset)

    ask.__name__ = action.name
    return admin.action(permissions=[action.name], description=f"{action.label} selected runs")(ask)


class ActingMixin:
    """Adds actions to the page of a run and to the list."""

    actions = [_for_several(action) for action in ACTIONS.values() if action.several]

    def get_urls(self):
        view = self.admin_site.admin_view(self.ask_view)
        return [path("<path:object_id>/do/<str:name>/", view, name="continuum_run_do"), *super().get_urls()]

    def may(self, request, action: Action) -> bool:
        """Whether somebody may do this."""
        return request.user.has_perm(action.permission)

    def has_signal_permission(self, request):
        return self.may(request, ACTIONS["signal"])

    def has_cancel_permission(self, request):
        return self.may(request, ACTIONS["cancel"])

    def has_retry_permission(self, request):
        return self.may(request, ACTIONS["retry"])

    def has_set_attributes_permission(self, request):
        return self.may(request, ACTIONS["set_attributes"])

    def buttons(self, request, run) -> list[tuple[str, str]]:
        """Return labels and addresses of what this person may do to this run."""
        name = f"{self.admin_site.name}:continuum_run_do"
        return [
            (action.label, reverse(name, args=[run.pk, action.name]))
            for action in ACTIONS.values()
            if action.fits(run) and self.may(request, action)
        ]

    def ask_view(self, request, object_id, name):
        """Ask about one run; on POST, do it."""
        action = ACTIONS.get(name)
        run = self.get_object(request, unquote(object_id))
        if action is None or run is None:
            raise Http404
        if not (self.has_view_permission(request, run) and self.may(request, action)):
            raise PermissionDenied
        form = action.ask([run], request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            outcome = act(action, run, form.cleaned_data, request.user, continuum_settings.DATABASE)
            if not outcome.error:
                messages.success(request, outcome.done)
                page = f"{self.admin_site.name}:continuum_run_change"
                return HttpResponseRedirect(reverse(page, args=[outcome.run.pk]))
            form.add_error(None, outcome.error)
        return self.ask(request, action, form, [run], title=f"{action.label}: {run.workflow}")

    def ask(self, request, action: Action, form: Any, runs: list[Any], *, title: str, several: bool = False):
        """Show the page that asks."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media + form.media,
            "title": title,
            "action": action,
            "form": form,
            "runs": runs[:_MOST_LISTED],
            "more": len(runs) - _MOST_LISTED,
            "number": len(runs),
            "several": several,
            "ids": [run.pk for run in runs] if several else [],
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/continuum/run/ask.html", context)
