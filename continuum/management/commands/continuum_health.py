"""``manage.py continuum_health``: is everything going on as it should?"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from continuum import health
from continuum.health import Check, Health, Status
from continuum.management.options import add_database, database, reachable

WIDTH = 110


class Command(BaseCommand):
    """Shows what the checks find."""

    help = (
        "Looks at how workers, runs, messages, queues and partitions stand, and says what is wrong and what to do. "
        "With --strict the exit status is 1 unless all is well."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=("text", "json"), default="text", help="Default: text.")
        parser.add_argument("--strict", action="store_true", help="Exit with 1 unless every check is ok.")
        parser.add_argument(
            "--ignore",
            action="append",
            default=[],
            choices=tuple(health.CHECKS),
            metavar="CHECK",
            help=f"Leave a check out; may be given several times. One of {', '.join(health.CHECKS)}.",
        )
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Examine, show, and exit."""
        alias = database(options["database"])
        with reachable(alias):
            found = health.examine(ignore=options["ignore"], using=alias)
        if options["format"] == "json":
            self.stdout.write(json.dumps(found.as_dict(), indent=2))
        else:
            self._tell(found)
        if options["strict"] and found.status is not Status.OK:
            sys.exit(1)

    def _tell(self, found: Health) -> None:
        width = max((len(check.name) for check in found.checks), default=0)
        for check in found.checks:
            self.stdout.write(self._line(check, width))
        bad = sum(check.status is not Status.OK for check in found.checks)
        summary = "All is well." if not bad else f"{bad} of {len(found.checks)} checks found something."
        self.stdout.write(self._coloured(summary, found.status))

    def _line(self, check: Check, width: int) -> str:
        label = check.status.value.upper() if check.status is not Status.OK else "ok"
        indent = " " * (12 + width)
        text = [f"{check.name:<{width}}  {check.message}"]
        wrapped = textwrap.fill(text[0], WIDTH, initial_indent=" " * 10, subsequent_indent=indent)[10:]
        more = [f"→ {check.hint}"] if check.hint else []
        more += [f"run {example}" for example in check.examples]
        lines = [textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ") for line in more]
        return "\n".join([self._coloured(f"{label:<8}", check.status) + "  " + wrapped, *lines])

    def _coloured(self, text: str, status: Status) -> str:
        style = {Status.OK: self.style.SUCCESS, Status.WARNING: self.style.WARNING, Status.CRITICAL: self.style.ERROR}
        return style[status](text)
