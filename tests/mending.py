"""Workflows whose code is changed in the middle of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from continuum.core.definitions import WorkflowDefinition
from continuum.core.registry import registry


def mend(monkeypatch: pytest.MonkeyPatch, definition: WorkflowDefinition, fn: Callable[..., Any]) -> None:
    """Have a workflow be another function from now on, as after a deploy."""
    changed = WorkflowDefinition(fn, name=definition.name, version=definition.version)
    monkeypatch.setitem(registry._workflows[definition.name], definition.version, changed)
