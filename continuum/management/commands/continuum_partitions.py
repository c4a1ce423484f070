"""``manage.py continuum_partitions``: shows the partitions of the history, and makes those that are missing."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.template.defaultfilters import filesizeformat

from continuum import upkeep
from continuum.management.options import add_database, count, database, reachable
from continuum.upkeep import Outcome, Partition, Rights, Step
from continuum.wording import counted
from continuum.worker.partitions import DEFAULT_PARTITION, MONTHS_AHEAD, MOST_MOVED, Month

MOST_AHEAD = 120


class Command(BaseCommand):
    """Shows partitions, or makes them."""

    help = (
        "Shows the month partitions of the history: which runs they are for, how big they are, and which run keeps "
        "each from going. Workers make those of the months to come where they may; --create and --move do it for "
        "them. The exit status is 1 if something could not be made."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--create",
            action="store_true",
            help="Make the partitions of this month and of those ahead that are missing.",
        )
        parser.add_argument(
            "--ahead",
            type=_months,
            default=MONTHS_AHEAD,
            metavar="N",
            help=f"How many months after the current one. Default: {MONTHS_AHEAD}.",
        )
        parser.add_argument(
            "--move",
            action="store_true",
            help="Make the partitions of all months of which the default partition holds events, and move these there, "
            "a month in a transaction.",
        )
        parser.add_argument(
            "--max-rows",
            type=count,
            default=MOST_MOVED,
            metavar="N",
            help="Leave months of which more events than this would have to move: meanwhile nobody reads or writes "
            f"histories. Default: {MOST_MOVED}.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Say what would be made, and make nothing.")
        parser.add_argument(
            "--sql", action="store_true", help="Print the statements instead, for somebody who may make tables."
        )
        parser.add_argument("--format", choices=("text", "json"), default="text", help="Default: text.")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Show, or make."""
        acting = options["create"] or options["move"]
        if (options["dry_run"] or options["sql"]) and not acting:
            raise CommandError("--dry-run and --sql need --create or --move.", returncode=2)
        if options["sql"] and (options["dry_run"] or options["format"] == "json"):
            raise CommandError("--sql goes with neither --dry-run nor --format json.", returncode=2)
        alias = database(options["database"])
        with reachable(alias):
            planned = upkeep.plan(ahead=options["ahead"], moving=options["move"] or not acting, using=alias)
            if options["sql"]:
                self.stdout.write(upkeep.script(planned, most_moved=options["max_rows"]), ending="")
            elif acting:
                self._act(planned, alias, options)
            else:
                self._show(upkeep.partitions(using=alias), planned, upkeep.rights(using=alias), options)

    def _act(self, planned: list[tuple[Month, int]], alias: str, options: dict[str, Any]) -> None:
        if options["dry_run"]:
            steps = [Step(name=month.name, rows=rows, outcome=Outcome.PLANNED) for month, rows in planned]
        else:
            self._require_rights(planned, upkeep.rights(using=alias))
            steps = []
            for step in upkeep.carry_out(planned, most_moved=options["max_rows"], using=alias):
                steps.append(step)
                self._tell(step, options)
        if options["format"] == "json":
            self.stdout.write(json.dumps({"steps": [asdict(step) for step in steps]}, indent=2))
        elif options["dry_run"]:
            for step in steps:
                self._tell(step, options)
        if not steps and options["format"] == "text":
            self.stdout.write("There is nothing to make.")
        if any(step.outcome is Outcome.LEFT for step in steps):
            sys.exit(1)

    def _require_rights(self, planned: list[tuple[Month, int]], rights: Rights) -> None:
        if planned and not rights.may_create:
            raise CommandError(_forbidden(rights))

    def _tell(self, step: Step, options: dict[str, Any]) -> None:
        if options["format"] == "json":
            return
        events = f", with {counted(step.rows, 'event')} from the default partition" if step.rows else ""
        match step.outcome:
            case Outcome.PLANNED:
                self.stdout.write(f"would make {step.name}{events}")
            case Outcome.MADE:
                self.stdout.write(f"made {step.name}{events}")
            case Outcome.LEFT:
                hint = "" if step.rows <= options["max_rows"] else f"; --max-rows {step.rows} moves them all the same"
                self.stdout.write(self.style.WARNING(f"left {step.name}: {step.reason}{events}{hint}"))

    def _show(
        self, found: list[Partition], planned: list[tuple[Month, int]], rights: Rights, options: dict[str, Any]
    ) -> None:
        if options["format"] == "json":
            told = {
                "partitions": [_as_json(each) for each in found],
                "missing": [{"name": month.name, "rows": rows} for month, rows in planned],
                "user": rights.user,
                "owner": rights.owner,
                "may_create": rights.may_create,
            }
            self.stdout.write(json.dumps(told, indent=2))
            return
        heads = ("partition", "runs started in", "events", "size", "oldest live run")
        rows = [heads, *map(_cells, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = zip(row, widths, (str.ljust, str.ljust, str.rjust, str.rjust, str.ljust), strict=True)
            self.stdout.write("  ".join(place(cell, width) for cell, width, place in cells).rstrip())
        now = {month.name for month, _ in planned}
        for month, moving in planned:
            held = f": {counted(moving, 'event')} of it in the default partition" if moving else ""
            self.stdout.write(self.style.WARNING(f"{month.name} is missing{held}."))
        if now:
            self.stdout.write("--create makes those of this month and the months ahead, --move all of them.")
            if not rights.may_create:
                self.stdout.write(self.style.WARNING(_forbidden(rights)))
        else:
            self.stdout.write(f"No partition is missing, for {counted(options['ahead'], 'month')} ahead.")


def _forbidden(rights: Rights) -> str:
    return (
        f"The role {rights.user} may not make partitions: the history belongs to {rights.owner}. Use --database with "
        "an alias of that role, or give its owner what --create --sql prints."
    )


def _cells(each: Partition) -> tuple[str, ...]:
    return (
        each.name,
        f"{each.since:%Y-%m}" if each.since else "any other month",
        "?" if each.rows is None else f"{each.rows:,}",
        filesizeformat(each.size).replace("\xa0", " "),
        str(each.oldest_live or "-") if each.name != DEFAULT_PARTITION else "",
    )


def _as_json(each: Partition) -> dict[str, Any]:
    moments = {"since": each.since and each.since.isoformat(), "until": each.until and each.until.isoformat()}
    return asdict(each) | moments | {"oldest_live": each.oldest_live and str(each.oldest_live)}


def _months(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= MOST_AHEAD:
        raise ArgumentTypeError(f"{text!r} is not a number of months, 0 to {MOST_AHEAD}")
    return number
