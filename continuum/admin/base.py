"""What the admin pages have in common."""

from django.contrib import admin

from continuum.conf import settings as continuum_settings

__all__ = ["ReadOnlyAdmin"]


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that only workers and the client functions write: to be looked at, not edited."""

    class Media:
        css = {"all": ("continuum/admin.css",)}

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions = None
    sortable_by = ()

    def get_queryset(self, request):
        return super().get_queryset(request).using(continuum_settings.DATABASE)

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False

    def has_delete_permission(self, request, obj=None):
        return False
