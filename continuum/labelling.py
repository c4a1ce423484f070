"""Attributes of runs that are there already: what people find them by may come to be known late, or change."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import connections

from continuum import arguments
from continuum.conf import settings as continuum_settings
from continuum.exceptions import DurableValueError, RunNotFoundError
from continuum.models import Run
from continuum.worker.sql import load

__all__ = ["set_attributes"]


def set_attributes(
    run_id: UUID | str | Run, attributes: dict[str, Any], namespace: str | None = None, *, using: str | None = None
) -> None:
    """Merge attributes into those of a run, in whatever state it is.

        continuum.set_attributes(run, {"reviewer": "ada", "risk": 3})

    Each key is set as a whole; the others stay. Of two merges at the same time neither is lost. The workflow's code
    does not see attributes, and its history does not mention them.

    In a transaction, do this last: until it ends, the worker that owns the run cannot record anything.

    Args:
        run_id: the run itself; of a chain of continued runs, no other.
        attributes: a dict of plain JSON values. None is stored as null.
        namespace: the namespace the run must be in; any if not given.
        using: database alias.

    Raises:
        RunNotFoundError: there is no such run, or not in that namespace.
        DurableValueError: the attributes would be too big, these or all together.
        TypeError, ValueError: an argument is wrong.
    """
    wanted = arguments.run_uuid(run_id)
    encoded = arguments.encode_attributes(attributes)
    parameters = {
        "run_id": str(wanted),
        "namespace": arguments.namespace_filter(namespace),
        "attributes": encoded,
        "limit": continuum_settings.MAX_VALUE_BYTES,
    }
    with connections[arguments.alias_for(using, run_id)].cursor() as cursor:
        cursor.execute(load("client_set_attributes"), parameters)
        found, merged = cursor.fetchone()
    if not found:
        raise RunNotFoundError(wanted)
    if not merged:
        limit = continuum_settings.MAX_VALUE_BYTES
        raise DurableValueError(
            "attributes", f"together with those of the run they exceed the limit of {limit:,} bytes"
        )
