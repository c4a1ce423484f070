"""Finding workflow modules: ``workflows.py`` of every installed app, and what ``WORKFLOW_MODULES`` names."""

from __future__ import annotations

from importlib import import_module

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import autodiscover_modules

from continuum.conf import settings

__all__ = ["autodiscover", "import_app_modules", "import_listed_modules"]


def autodiscover() -> None:
    """Import every workflow module, so that their workflows and activities are registered.

    Cheap when called again: what is imported stays imported, and a module that failed is tried anew.

    Raises:
        ImproperlyConfigured: an entry of ``CONTINUUM["WORKFLOW_MODULES"]`` cannot be imported.
        Exception: whatever the ``workflows.py`` of an app raises while it is imported, as with ``admin.py``.
    """
    import_app_modules()
    broken = import_listed_modules()
    if broken:
        raise ImproperlyConfigured("\n".join(broken.values()))


def import_app_modules() -> None:
    """Import ``workflows.py`` of every installed app that has one; what it raises is not caught."""
    autodiscover_modules("workflows")


def import_listed_modules() -> dict[str, str]:
    """Import the modules of ``CONTINUUM["WORKFLOW_MODULES"]``.

    Returns:
        Those that could not be imported: name to a sentence that says why.

    Raises:
        ImproperlyConfigured: the setting is no list of names.
    """
    broken = {}
    for name in settings.WORKFLOW_MODULES:
        try:
            import_module(name)
        except Exception as error:
            broken[name] = _sentence(name, error)
    return broken


def _sentence(name: str, error: Exception) -> str:
    entry = f'CONTINUUM["WORKFLOW_MODULES"] names {name!r}, '
    if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
        return entry + "but there is no such module."
    return entry + f"but importing it failed: {type(error).__name__}: {error}"
