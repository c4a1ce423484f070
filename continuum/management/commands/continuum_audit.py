"""``manage.py continuum_audit``: is the code at hand fit for the runs in flight? Reads only."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from continuum.audit import audit
from continuum.audit.proofs import ReplayReport, prove_live_histories
from continuum.discovery import autodiscover
from continuum.management.audit_text import audit_lines
from continuum.management.options import add_database, count, database, reachable

try:
    from tqdm import tqdm
except ImportError:  # the bar is a comfort, not a need
    tqdm = None


class Command(BaseCommand):
    """Audits versions, patches and, if asked to, histories."""

    help = (
        "Compares the workflows loaded here with the runs in flight: which patched() sites may go, which runs need "
        "code that is not here, which are stuck. Writes nothing. Run it with the new code before it is deployed."
    )
    # It is there to tell what is wrong with code that the checks may refuse.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=("text", "json"), default="text", help="Default: text.")
        parser.add_argument(
            "--strict",
            action="store_true",
            help="Exit with status 1 on a patched() site that is safe to remove, an active run of a workflow or "
            "version that is not loaded and cannot be adopted, a stuck run, a history that the code does not replay.",
        )
        parser.add_argument(
            "--replay",
            action="store_true",
            help="Replay the history of every active run in memory, to prove that the code here fits it.",
        )
        parser.add_argument(
            "--replay-sample",
            type=count,
            metavar="N",
            help="Replay at most N histories of each version of a workflow, spread over their ages.",
        )
        parser.add_argument(
            "--limit",
            type=count,
            default=100,
            metavar="N",
            help="List at most N stuck runs, expired claims and histories that do not fit. Default: 100.",
        )
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Audit, report, and judge."""
        try:
            autodiscover()
            alias = database(options["database"])
            with reachable(alias):
                found = audit(alias, limit=options["limit"], replay=self._replay(alias, options))
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        failures = found.failures()
        if options["format"] == "json":
            self.stdout.write(json.dumps(found.as_dict(), indent=2))
        else:
            width = min(shutil.get_terminal_size((100, 24)).columns, 120)
            for line in audit_lines(found, self.style, width):
                self.stdout.write(line)
        if options["strict"] and failures:
            if options["format"] == "json":
                self.stderr.write("\n".join(failures))
            sys.exit(1)

    def _replay(self, alias: str, options: dict[str, Any]) -> ReplayReport | None:
        if not options["replay"] and options["replay_sample"] is None:
            return None
        with _progress(options["verbosity"] > 0 and self.stderr.isatty()) as progress:
            return prove_live_histories(
                alias, sample=options["replay_sample"], limit=options["limit"], progress=progress
            )


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int], None]]:
    if not shown or tqdm is None:
        yield lambda done, total: None
        return
    with tqdm(unit=" histories", unit_scale=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
