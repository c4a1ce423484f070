"""``manage.py continuum_runs``: finds runs, shows what one did and why it waits, and acts on them."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

import continuum
from continuum.arguments import typed_payload
from continuum.describing import described, events, payloads
from continuum.exceptions import ContinuumError
from continuum.management.options import add_database, count, database, reachable
from continuum.management.telling import event_lines, list_lines, run_lines
from continuum.models import Run
from continuum.moments import aware

LEAST_DIGITS = 8


class Command(BaseCommand):
    """Runs, from the terminal."""

    help = "Lists runs, shows one with its timeline, prints a history, and signals, cancels, retries or forks runs."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        listing = self._action(actions, "list", "List runs, the newest first.")
        listing.add_argument("--workflow", metavar="NAME", help="Of this workflow; NAME* for those that begin so.")
        listing.add_argument(
            "--state", action="append", choices=Run.State.values, metavar="STATE", help="In this state; repeatable."
        )
        listing.add_argument(
            "--attribute",
            action="append",
            type=_attribute,
            default=[],
            metavar="PATH=VALUE",
            help="With this attribute, such as plan=pro or customer.id=7: a JSON value, or else a text. Repeatable.",
        )
        listing.add_argument("--all-namespaces", action="store_true", help="Of every namespace.")
        listing.add_argument("--limit", type=count, default=25, metavar="N", help="How many, at most. Default: 25.")
        listing.add_argument("--cursor", help="Go on where an earlier list ended.")

        show = self._action(actions, "show", "Show a run: why it waits, its timeline, its values.")
        _add_run(show)
        history = self._action(actions, "history", "Print a run's history.")
        _add_run(history)
        history.add_argument("--after", type=int, default=0, metavar="SEQ", help="Only events after this one.")

        signal = self._action(actions, "signal", "Send a signal to a run.")
        _add_run(signal)
        signal.add_argument("name", metavar="NAME")
        signal.add_argument("payload", nargs="?", type=_json, metavar="JSON", help="Default: null.")
        signal.add_argument("--delivery-id", metavar="ID", help="Deliver once, however often it is sent with this id.")

        cancel = self._action(actions, "cancel", "Ask runs to stop; they clean up first.")
        _add_run(cancel, several=True)
        cancel.add_argument("--reason", default="", help="What the run, and its history, are told.")
        retry = self._action(actions, "retry", "Let failed runs go on from where they failed.")
        _add_run(retry, several=True)
        fork = self._action(actions, "fork", "Start a run that shares another's history before a command.")
        _add_run(fork)
        fork.add_argument("command_id", metavar="COMMAND_ID", help="Such as 0:3, as the history shows it.")

    def _action(self, actions: Any, name: str, told: str) -> CommandParser:
        parser = actions.add_parser(name, help=told, description=told)
        parser.add_argument("--format", choices=("text", "json"), default="text", help="Default: text.")
        parser.add_argument("--namespace", metavar="NAME", help="The namespace the runs must be in.")
        add_database(parser)
        return parser

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked for."""
        alias = database(options["database"])
        with reachable(alias):
            try:
                getattr(self, f"_{options['action']}")(alias, options)
            except (ContinuumError, ValueError, TypeError) as error:
                raise CommandError(str(error)) from error

    def _list(self, alias: str, options: dict[str, Any]) -> None:
        where: list[tuple[Any, ...]] = [("eq", ["attributes", *path], value) for path, value in options["attribute"]]
        if options["state"]:
            where.append(("in", "state", options["state"]))
        if name := options["workflow"]:
            where.append(("startswith", "workflow", name[:-1]) if name.endswith("*") else ("eq", "workflow", name))
        namespace = None if options["all_namespaces"] else options["namespace"] or "default"
        left, cursor, found = options["limit"], options["cursor"], []
        while left > 0:
            page = continuum.query(namespace, where, per_page=min(left, 100), cursor=cursor, using=alias)
            found += page.entries
            left -= len(page.entries)
            cursor = page.next_cursor
            if cursor is None:
                break
        if options["format"] == "json":
            self._json({"runs": [described(run) for run in found], "next_cursor": cursor})
            return
        if not found:
            where_to_look = "any namespace" if namespace is None else f"the namespace {namespace!r}"
            self.stdout.write(f"There are no such runs in {where_to_look}.")
            return
        self._lines(list_lines(found, datetime.now(UTC)))
        if cursor is not None:
            self.stdout.write(f"There are more: --cursor {cursor}")

    def _show(self, alias: str, options: dict[str, Any]) -> None:
        run = self._run(alias, options)
        facts, values = described(run), payloads(run)
        if options["format"] == "json":
            self._json(facts | values)
            return
        width = shutil.get_terminal_size((110, 24)).columns
        self._lines(run_lines(run, facts, values, min(width, 160)))

    def _history(self, alias: str, options: dict[str, Any]) -> None:
        run = self._run(alias, options)
        found = events(run, after=options["after"])
        if options["format"] == "json":
            for event in found:  # one a line: histories are long
                self.stdout.write(json.dumps(event, ensure_ascii=False))
            return
        self._lines(event_lines(found, aware(run.started_at)))

    def _signal(self, alias: str, options: dict[str, Any]) -> None:
        run = self._run(alias, options)
        payload = typed_payload(run, options["name"], options["payload"])
        sent = continuum.signal(run, options["name"], payload, delivery_id=options["delivery_id"], using=alias)
        told = f"run {run.id} was sent {options['name']!r}" if sent else f"run {run.id} has had this delivery before"
        self._done(options, told, {"id": str(run.id), "delivered": sent})

    def _cancel(self, alias: str, options: dict[str, Any]) -> None:
        def cancel(run: Run) -> tuple[str, dict[str, Any]]:
            continuum.cancel(run, reason=options["reason"], using=alias)
            return f"run {run.id} was asked to stop", {"id": str(run.id)}

        self._each(alias, options, cancel)

    def _retry(self, alias: str, options: dict[str, Any]) -> None:
        def retry(run: Run) -> tuple[str, dict[str, Any]]:
            return f"run {run.id} goes on", described(continuum.retry(run, using=alias))

        self._each(alias, options, retry)

    def _fork(self, alias: str, options: dict[str, Any]) -> None:
        run = self._run(alias, options)
        forked = continuum.fork(run, before=options["command_id"], using=alias)
        self._done(
            options, f"run {forked.id} goes on from before {options['command_id']} of {run.id}", described(forked)
        )

    def _each(self, alias: str, options: dict[str, Any], act: Any) -> None:
        """Act on each run; one that cannot be acted on does not keep the others from it."""
        refused = 0
        for text in options["run"]:
            try:
                told, data = act(self._run(alias, options | {"run": text}))
            except (ContinuumError, CommandError) as error:
                refused += 1
                self.stderr.write(self.style.ERROR(str(error)))
            else:
                self._done(options, told, data)
        if refused:
            raise CommandError(f"{refused} of {len(options['run'])} refused.")

    def _run(self, alias: str, options: dict[str, Any]) -> Run:
        """Find a run by its id, or by how its id begins or ends if no other's does so."""
        text, namespace = options["run"], options["namespace"]
        digits = text.replace("-", "").lower()
        if len(digits) == 32:
            return continuum.get_run(UUID(digits), namespace, using=alias)
        bounds = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
        runs = Run.objects.using(alias).filter(id__range=bounds)
        if namespace is not None:
            runs = runs.in_namespace(namespace)
        found = list(runs[:2])
        if len(found) != 1:
            raise CommandError(
                f"{'Several runs have ids that begin' if found else 'No run has an id that begins'} with {text!r}."
            )
        return found[0]

    def _done(self, options: dict[str, Any], told: str, data: dict[str, Any]) -> None:
        if options["format"] == "json":
            self._json(data)
        else:
            self.stdout.write(told)

    def _json(self, data: Any) -> None:
        self.stdout.write(json.dumps(data, indent=2, ensure_ascii=False))

    def _lines(self, lines: Any) -> None:
        for line in lines:
            self.stdout.write(line)


def _add_run(parser: CommandParser, *, several: bool = False) -> None:
    parser.add_argument(
        "run",
        type=_run_id,
        metavar="ID",
        nargs="+" if several else None,
        help=f"The run's id, or its beginning: at least {LEAST_DIGITS} digits that no other run's id begins with.",
    )


def _run_id(text: str) -> str:
    digits = text.replace("-", "")
    if not re.fullmatch(rf"[0-9a-fA-F]{{{LEAST_DIGITS},32}}", digits):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the id of a run, nor at least {LEAST_DIGITS} digits of its beginning"
        )
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error}); a text needs quotes: '\"…\"'") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in it")


def _attribute(text: str) -> tuple[list[str], Any]:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH=VALUE, such as plan=pro")
    try:
        return path.split("."), json.loads(value)
    except ValueError:
        return path.split("."), value
