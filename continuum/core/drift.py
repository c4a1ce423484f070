"""History and code side by side, in words."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from continuum.core.commands import Command
from continuum.core.history import Event

__all__ = ["asked", "same", "told"]


def asked(pending: Collection[Command], state: str | None) -> str:
    """Say what the code asked for instead; ``state`` is how it has ended, or None."""
    if state is not None:
        return f"nothing: the code has ended {state}"
    if not pending:
        return "nothing: the code waits for nothing that history could answer"
    return "something else: " + "; ".join(str(command) for command in list(pending)[:5])


def same(one: Any, other: Any) -> bool:
    """Whether two JSON trees say the same: unlike in Python, 1, 1.0 and true are not equal."""
    return json.dumps(one) == json.dumps(other)


def told(event: Event) -> str:
    """Say what history holds."""
    kind = event.type.replace("_", " ")
    try:
        data = json.loads(event.data)
    except ValueError:
        data = {}
    args = data.get("args") if isinstance(data, dict) else None
    if args is None:
        shown = ""
    else:
        shown = f" with arguments {args if isinstance(args, str) else json.dumps(args, separators=(',', ':'))}"
    return f"{event.command_id or ''} {kind} {event.name or ''}".strip() + shown
