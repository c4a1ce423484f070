"""Telling the database which workflow versions this worker has loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

import psycopg

from continuum.core.code.patches import patch_sites
from continuum.core.definitions import WorkflowDefinition
from continuum.sourcefiles import shown
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.sql import load

__all__ = ["as_loaded", "register_versions"]


def as_loaded(workflows: Iterable[WorkflowDefinition]) -> dict[str, dict[str, int]]:
    """Return what a worker's row says it has loaded: by workflow and version hash, the version."""
    loaded: dict[str, dict[str, int]] = {}
    for definition in workflows:
        loaded.setdefault(definition.name, {})[definition.version_hash] = definition.version
    return loaded


async def register_versions(connection: psycopg.AsyncConnection[Any], workflows: list[WorkflowDefinition]) -> None:
    """Record the loaded versions, and that they were seen."""
    parameters = {
        "names": text_array([w.name for w in workflows]),
        "versions": plain_array([w.version for w in workflows]),
        "hashes": text_array([w.version_hash for w in workflows]),
        "locations": text_array([_location(w) for w in workflows]),
        "sites": text_array([_sites(w) for w in workflows]),
    }
    await connection.execute(load("versions_register"), parameters, prepare=False)


@cache
def _location(definition: WorkflowDefinition) -> str:
    try:
        file = inspect.getsourcefile(definition.fn) or "?"
        return f"{file}:{inspect.getsourcelines(definition.fn)[1]}"
    except (OSError, TypeError):
        return "?"


@cache
def _sites(definition: WorkflowDefinition) -> str:
    """Return where the code asks ``patched()``, as JSON: by it an audit tells which runs may have gone past a site."""
    sites = patch_sites(definition.fn)
    return json.dumps([{"name": site.name, "file": shown(site.file), "line": site.line} for site in sites])
