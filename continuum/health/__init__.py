"""Is everything going on as it should? Checks that look at the tables and say what they found in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.db import connections, transaction

from continuum.arguments import alias_for
from continuum.health import running, setup
from continuum.health.findings import Check, Health, Look, Status

__all__ = ["CHECKS", "Check", "Health", "Status", "examine"]

#: The checks by name, in the order in which they are made and shown.
CHECKS: dict[str, Callable[[str, Look], list[Check] | Check]] = {
    "configuration": setup.configuration,
    "migrations": setup.migrations,
    "connections": setup.connection_limits,
    "workers": running.workers,
    "leases": running.leases,
    "overdue": running.overdue,
    "timers": running.timers,
    "wakes": running.wakes,
    "backlog": running.backlog,
    "stuck": running.stuck,
    "dead-letters": running.dead_letters,
    "partitions": setup.partitions,
    "default-partition": setup.default_partition,
}


def examine(*, ignore: Sequence[str] = (), using: str | None = None) -> Health:
    """Look at how workers, runs, messages, queues and partitions stand. Writes nothing.

    Args:
        ignore: names of checks to leave out, see ``CHECKS``.
        using: database alias.

    Raises:
        ValueError: ``ignore`` names a check that there is not.
    """
    if unknown := [name for name in ignore if name not in CHECKS]:
        raise ValueError(f"ignore: there is no check {unknown[0]!r}, only {', '.join(CHECKS)}")
    alias = alias_for(using)
    # One transaction, so that all checks see the same moment.
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        look = Look(cursor, alias)
        checks: list[Check] = []
        for name, check in CHECKS.items():
            if name not in ignore:
                found = check(name, look)
                checks += found if isinstance(found, list) else [found]
        return Health(checked_at=look.now, checks=tuple(checks))
