"""List filters whose choices do not cost a pass over all runs."""

from django.contrib.admin import SimpleListFilter
from django.db import connections

from continuum.conf import settings as continuum_settings
from continuum.models import WorkflowVersion

__all__ = ["NamespaceFilter", "WorkflowFilter"]

_MOST_CHOICES = 100

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


class NamespaceFilter(SimpleListFilter):
    """By namespace, when there is more than one."""

    title = "namespace"
    parameter_name = "namespace"

    def lookups(self, request, model_admin):
        with connections[continuum_settings.DATABASE].cursor() as cursor:
            cursor.execute(_NAMESPACES, [_MOST_CHOICES])
            return [(name, name) for (name,) in cursor.fetchall()]

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
        return queryset if self.value() is None else queryset.filter(workflow=self.value())
