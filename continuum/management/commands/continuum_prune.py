"""``manage.py continuum_prune``: deletes runs whose retention is over; without ``--execute`` only tells which."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.template.defaultfilters import filesizeformat

from continuum import retention
from continuum.management.options import add_database, count, database, duration, reachable
from continuum.retention import Pruned, Survey
from continuum.wording import counted

try:
    from tqdm import tqdm
except ImportError:  # the bar is a comfort, not a need
    tqdm = None

MOST_WORKFLOWS = 20


class Command(BaseCommand):
    """Tells what may go, or deletes it."""

    help = (
        "Deletes runs that have ended and whose retention is over, with their histories. Without --execute nothing is "
        "deleted: it tells what would be."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="AGE",
            help="Delete every run that ended longer ago than this (30d, 12h), whatever its workflow's retention; "
            "but never those of workflows with retention=None.",
        )
        parser.add_argument(
            "--keys-older-than",
            type=duration,
            metavar="AGE",
            help="Also delete idempotency keys older than this that no run needs. From then on they can be used again. "
            "Default: keys are kept.",
        )
        parser.add_argument(
            "--batch-size", type=count, default=1_000, metavar="N", help="Runs a transaction. Default: 1000."
        )
        parser.add_argument("--execute", action="store_true", help="Delete. Without it, nothing is deleted.")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Survey, or prune."""
        alias = database(options["database"])
        times = {
            "older_than": options["older_than"],
            "keys_older_than": options["keys_older_than"],
            "using": alias,
        }
        with reachable(alias):
            if not options["execute"]:
                self._tell_survey(retention.survey(**times), options)
                return
            with _progress(options["verbosity"] > 0 and self.stderr.isatty()) as on_progress:
                pruned = retention.prune(**times, batch_size=options["batch_size"], on_progress=on_progress)
        self._tell_pruned(pruned)

    def _tell_survey(self, found: Survey, options: dict[str, Any]) -> None:
        going = found.may_go.total()
        if found.ended_before is None:
            rule = f"retention over at {found.now:%Y-%m-%d %H:%M} UTC"
        else:
            rule = f"ended before {found.ended_before:%Y-%m-%d %H:%M} UTC"
        lines = [
            f"{found.runs:>12,}  runs",
            f"{found.ended:>12,}  have ended",
            f"{found.kept_for_ever:>12,}  of these are kept for ever",
            f"{found.due:>12,}  are due: {rule}",
        ]
        if found.needed:
            lines.append(f"{found.needed:>12,}  of these stay: a run that is not due needs them")
        lines.append(f"{going:>12,}  would be deleted")
        ranking = found.may_go.most_common(MOST_WORKFLOWS)
        lines += [f"{number:>12,}    {workflow}" for workflow, number in ranking]
        if len(found.may_go) > len(ranking):
            rest = going - sum(number for _, number in ranking)
            lines.append(f"{rest:>12,}    of {len(found.may_go) - len(ranking)} other workflows")
        for name, size in found.months.items():
            lines.append(f"{filesizeformat(size):>12}  partition {name} would be dropped as a whole")
        if options["keys_older_than"] is not None:
            lines.append(f"{found.keys:>12,}  idempotency keys would be deleted")
        if going or found.months or found.keys:
            lines.append("Nothing was deleted. Say --execute to delete.")
        else:
            lines.append("There is nothing to delete.")
        self.stdout.write("\n".join(lines))

    def _tell_pruned(self, done: Pruned) -> None:
        lines = [f"Deleted {counted(done.runs, 'run')}, {counted(done.events, 'event')} of their histories."]
        if done.messages:
            lines.append(f"Deleted {counted(done.messages, 'message')} of theirs.")
        if done.keys:
            lines.append(f"Deleted {counted(done.keys, 'idempotency key')}.")
        if done.months:
            lines.append(f"Dropped {', '.join(done.months)}.")
        if done.left:
            lines.append(f"Left {counted(done.left, 'run')} that somebody held, or came to need, at that moment.")
        if done.left_months:
            lines.append(f"Left {', '.join(done.left_months)}: in use just then. The next time they go.")
        self.stdout.write("\n".join(lines))


def _progress(shown: bool) -> Any:
    if not shown or tqdm is None:
        return nullcontext(lambda done, total: None)
    return _Bar()


class _Bar:
    def __enter__(self) -> Callable[[int, int], None]:
        self._bar = tqdm(unit=" runs", unit_scale=True)
        return self._show

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def _show(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
