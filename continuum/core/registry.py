"""Definitions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from continuum.exceptions import UnknownActivityError, UnknownWorkflowError

if TYPE_CHECKING:
    from continuum.core.definitions import ActivityDefinition, WorkflowDefinition

__all__ = ["Registry", "describe_function", "registry"]


class Registry:
    """Definitions by name. Decorators fill it when modules are imported."""

    def __init__(self) -> None:
        self._workflows: dict[str, dict[int, WorkflowDefinition]] = {}
        self._activities: dict[str, ActivityDefinition] = {}

    def add_workflow(self, definition: WorkflowDefinition) -> None:
        versions = self._workflows.setdefault(definition.name, {})
        self._refuse_other(versions.get(definition.version), definition)
        versions[definition.version] = definition

    def add_activity(self, definition: ActivityDefinition) -> None:
        self._refuse_other(self._activities.get(definition.name), definition)
        self._activities[definition.name] = definition

    @staticmethod
    def _refuse_other(known: Any, new: Any) -> None:
        # The same function again is a reload; two different functions under one name would be a guess later on.
        if known is not None and (known.fn.__module__, known.fn.__qualname__) != (
            new.fn.__module__,
            new.fn.__qualname__,
        ):
            raise ValueError(
                f"two functions want to be the {new.kind} {new.name!r}: "
                f"{describe_function(known.fn)} and {describe_function(new.fn)}"
            )

    def workflow(self, name: str, version: int | None = None) -> WorkflowDefinition:
        """Return the workflow of that name: that version, or the highest where it is not loaded or not given.

        Raises:
            UnknownWorkflowError: no workflow of that name is loaded; the message lists those that are.
        """
        versions = self._workflows.get(name)
        if not versions:
            raise UnknownWorkflowError(name, sorted(self._workflows))
        return versions.get(version) or versions[max(versions)]

    def activity(self, name: str) -> ActivityDefinition:
        """Return the activity of that name.

        Raises:
            UnknownActivityError: it is not loaded; the message lists those that are.
        """
        try:
            return self._activities[name]
        except KeyError:
            raise UnknownActivityError(name, sorted(self._activities)) from None

    def workflows(self) -> list[WorkflowDefinition]:
        """Every loaded workflow, by name and version."""
        return [versions[v] for _, versions in sorted(self._workflows.items()) for v in sorted(versions)]

    def activities(self) -> list[ActivityDefinition]:
        """Every loaded activity, by name."""
        return [self._activities[name] for name in sorted(self._activities)]


#: The registry of this process.
registry = Registry()


def describe_function(fn: Callable[..., Any]) -> str:
    """Name a function for an error message: module and qualified name."""
    name = getattr(fn, "__qualname__", None)
    return f"{fn.__module__}.{name}" if name else repr(fn)
