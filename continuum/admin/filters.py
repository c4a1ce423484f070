"""List filters whose choices do not cost a pass over all runs."""

from collections.abc import Sequence
from uuid import UUID

from django.contrib.admin import SimpleListFilter
from django.db import connections
from django.db.models import Q, QuerySet

from continuum.conf import settings as continuum_settings
from continuum.models import Run, WorkflowVersion
from continuum.search.statements import LIVE

__all__ = ["NamespaceFilter", "WorkflowFilter", "of_workflows"]

_MOST_CHOICES = 100
# So many live runs of a workflow are named by their ids. Of one with more, that number is soon come across.
_MOST_NAMED = 200

# Hops from one namespace to the next along the index on (namespace, state), where a DISTINCT would read all of it.
_NAMESPACES = """
WITH RECURSIVE hop AS (
    (SELECT namespace FROM continuum_runs ORDER BY namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT namespace FROM continuum_runs WHERE namespace > hop.namespace ORDER BY namespace LIMIT 1)
      FROM hop
     WHERE hop.namespace IS NOT NULL
)
SELECT namespace FROM hop WHERE namespace IS NOT NULL LIMIT %s
"""


def of_workflows(runs: QuerySet, names: Sequence[str]) -> QuerySet:
    """Keep the runs of some workflows.

    The index on workflows is for runs that have ended, in each namespace. Named in the question, it finds the few runs
    of a rare workflow beside those that live; otherwise that would take reading all there are. Those that live have to
    be read: once, in place of once for their number and once for the page. By state, as those that have ended would be
    read too on the way to some that live.
    """
    spaces = _namespaces()
    if len(spaces) == _MOST_CHOICES:
        return runs.filter(workflow__in=names)
    ended = Q(workflow__in=names, state__in=Run.TERMINAL_STATES, namespace__in=spaces)
    live = Q(workflow__in=names, state__in=LIVE, namespace__in=spaces)
    some = _live_ones(runs.filter(workflow__in=names), spaces)
    return runs.filter(ended | (live if len(some) > _MOST_NAMED else Q(id__in=some)))


def _live_ones(runs: QuerySet, spaces: Sequence[str]) -> list[UUID]:
    """Return the ids of those that live, and only of so many that it is known to be too many to name.

    Along the index by namespace and state and in its order, so that no more than those are read. Before version 17
    PostgreSQL does not take what it finds by a list of values for ordered: a stretch of the index for each namespace
    serves all versions. (No other states lie between those of runs that live.)
    """
    stretches = [
        runs.filter(namespace__gte=space, namespace__lte=space, state__gte=min(LIVE), state__lte=max(LIVE))
        .order_by("namespace", "state")
        .values_list("id", flat=True)[: _MOST_NAMED + 1]
        for space in spaces
    ]
    if len(stretches) < 2:
        return list(stretches[0]) if stretches else []
    return list(stretches[0].union(*stretches[1:], all=True)[: _MOST_NAMED + 1])


def _namespaces() -> list[str]:
    with connections[continuum_settings.DATABASE].cursor() as cursor:
        cursor.execute(_NAMESPACES, [_MOST_CHOICES])
        return [name for (name,) in cursor.fetchall()]


class NamespaceFilter(SimpleListFilter):
    """By namespace, when there is more than one."""

    title = "namespace"
    parameter_name = "namespace"

    def lookups(self, request, model_admin):
        return [(name, name) for name in _namespaces()]

    def has_output(self):
        return len(self.lookup_choices) > 1

    def queryset(self, request, queryset):
        return queryset if self.value() is None else queryset.filter(namespace=self.value())


class WorkflowFilter(SimpleListFilter):
    """By workflow, out of those that some worker has ever loaded."""

    title = "workflow"
    parameter_name = "workflow"

    def lookups(self, request, model_admin):
        known = WorkflowVersion.objects.using(continuum_settings.DATABASE).order_by("workflow")
        names = known.values_list("workflow", flat=True).distinct()[:_MOST_CHOICES]
        return [(name, name) for name in names]

    def queryset(self, request, queryset):
        return queryset if self.value() is None else of_workflows(queryset, [self.value()])
