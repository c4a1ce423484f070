"""The Django app."""

from __future__ import annotations

from contextlib import suppress

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured


class ContinuumConfig(AppConfig):
    """Registers the system checks, makes model instances durable values, and loads the project's workflow modules."""

    name = "continuum"
    label = "continuum"
    verbose_name = "Continuum"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from continuum import checks, references  # noqa: F401  (importing checks registers them)
        from continuum.discovery import import_app_modules, import_listed_modules

        references.register()
        import_app_modules()
        # A wrong setting must not keep `manage.py check` from naming it: the checks report what is passed over here.
        with suppress(ImproperlyConfigured):
            import_listed_modules()
