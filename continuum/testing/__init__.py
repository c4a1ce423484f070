"""Tools for testing, on top of the public API: ``dump_history``, ``assert_replays``, and a pytest plugin.

Loaded at first use, as the plugin is imported in every project that has Continuum installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continuum.testing.environment import (
        Environment as Environment,
        StuckError as StuckError,
    )
    from continuum.testing.histories import (
        assert_replays as assert_replays,
        dump_history as dump_history,
    )

_HOMES = {
    "Environment": "continuum.testing.environment",
    "StuckError": "continuum.testing.environment",
    "assert_replays": "continuum.testing.histories",
    "dump_history": "continuum.testing.histories",
}

__all__ = ["Environment", "StuckError", "assert_replays", "dump_history", "ready"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def ready() -> None:
    """Set Django up where nobody has done so yet, as a plain pytest does not.

    Raises:
        ImproperlyConfigured: there are no settings; the message says how to name them.
    """
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup()
