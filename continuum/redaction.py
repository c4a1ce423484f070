"""Hiding secrets from those who look: the project's hook sees each value before a person does."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuum.conf import settings as continuum_settings

__all__ = ["HIDDEN", "Shown", "redacted"]

logger = logging.getLogger("continuum.redaction")

#: What is shown in place of a value whose redaction failed.
HIDDEN = "(hidden: the redaction failed)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Where a value that is about to be shown comes from.

    Attributes:
        field: ``input``, ``result``, ``error``, ``progress``, ``waiting_on`` or ``event``.
        run_id: the run.
        workflow, namespace: the run's.
        type: of an event, such as ``activity_completed``; else empty.
        name: of the activity, child or signal an event is about; else empty.
    """

    field: str
    run_id: UUID
    workflow: str
    namespace: str
    type: str = ""
    name: str = ""


def redacted(value: Any, shown: Shown) -> Any:
    """Return what may be shown of a value: what ``CONTINUUM["REDACT"](value, shown)`` returns, or the value itself.

    The value is made of JSON values, as people see it. A hook that raises hides it.
    """
    hook = continuum_settings.REDACT
    if hook is None:
        return value
    try:
        return hook(value, shown)
    except Exception:
        logger.exception("CONTINUUM['REDACT'] failed for the %s of run %s: it is not shown", shown.field, shown.run_id)
        return HIDDEN
