"""Telling the database which workflow versions this worker has loaded."""

from __future__ import annotations

import inspect
from typing import Any

import psycopg

from continuum.core.definitions import WorkflowDefinition
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.sql import load

__all__ = ["register_versions"]


async def register_versions(connection: psycopg.AsyncConnection[Any], workflows: list[WorkflowDefinition]) -> int:
    """Record the loaded versions, and wake the runs that were parked for want of one of them.

    A run is parked with the hash of the code that could not replay it; other code deserves a try.

    Returns:
        int: how many parked runs will be tried again.
    """
    parameters = {
        "names": text_array([w.name for w in workflows]),
        "versions": plain_array([w.version for w in workflows]),
        "hashes": text_array([w.version_hash for w in workflows]),
        "locations": text_array([_location(w) for w in workflows]),
    }
    await connection.execute(load("versions_register"), parameters, prepare=False)
    cursor = await connection.execute(load("versions_unpark"), parameters, prepare=False)
    return cursor.rowcount


def _location(definition: WorkflowDefinition) -> str:
    try:
        file = inspect.getsourcefile(definition.fn) or "?"
        return f"{file}:{inspect.getsourcelines(definition.fn)[1]}"
    except (OSError, TypeError):
        return "?"
