"""What a worker needs to know of a call it knows nothing else about, as the row of a task keeps it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, NamedTuple

from continuum.core.commands import Command
from continuum.core.retry import Retry

__all__ = ["TaskOptions", "decode_options", "encode_options"]

_RETRY_FIELDS = tuple(field.name for field in fields(Retry))


class TaskOptions(NamedTuple):
    """The options of one call.

    Attributes:
        retry: when it is tried again; exception classes have become their names.
        timeout: seconds one attempt may take, or None.
        heartbeat_timeout: seconds between two heartbeats, or None.
        key: the idempotency key, or None.
        issued_us: when the workflow asked, microseconds since the epoch.
    """

    retry: Retry
    timeout: float | None
    heartbeat_timeout: float | None
    key: str | None
    issued_us: int


def encode_options(command: Command) -> str:
    """Return the options of an activity's command as JSON text."""
    options = command.options
    retry = {name: getattr(options.retry, name) for name in _RETRY_FIELDS}
    retry["non_retryable"] = [
        entry if isinstance(entry, str) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in options.retry.non_retryable
    ]
    return json.dumps(
        {
            "retry": retry,
            "timeout": options.timeout,
            "heartbeat_timeout": options.heartbeat_timeout,
            "key": command.key,
            "issued": command.issued_us,
        }
    )


def decode_options(text: str) -> TaskOptions:
    """Return what :func:`encode_options` made a text of; by a newer worker, perhaps, that knows more than this one."""
    data: dict[str, Any] = json.loads(text)
    given = {name: value for name, value in data["retry"].items() if name in _RETRY_FIELDS}
    given["non_retryable"] = tuple(given.get("non_retryable") or ())
    return TaskOptions(
        Retry(**given), data.get("timeout"), data.get("heartbeat_timeout"), data.get("key"), data["issued"]
    )
