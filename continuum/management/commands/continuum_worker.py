"""``manage.py continuum_worker``: runs workflows and activities until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import textwrap
import threading
from contextlib import suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor
from django.utils import autoreload

import continuum
from continuum import discovery
from continuum.conf import settings as continuum_settings
from continuum.core.definitions import registry
from continuum.management.options import add_database, count, database
from continuum.wording import counted
from continuum.worker import log, processors
from continuum.worker.joint_probes import ASKED_BY, JointProbes
from continuum.worker.options import NodeOptions
from continuum.worker.queues import DEFAULT_QUEUE
from continuum.worker.supervisor import OTHERS_PIPE, Supervisor, descriptor_of, end_with_parent

logger = logging.getLogger("continuum.worker")

MOST_NAMES = 12


class Command(BaseCommand):
    """Runs workers: as many processes as there are processors to use, unless somebody says how many."""

    help = "Runs workflows and activities until it is told to stop (SIGTERM or Ctrl-C drain, a second one leaves)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--queues",
            type=_queues,
            metavar="A,B",
            help="Carry out activities of these queues only; workflows run here if `default` is among them. "
            "Default: all queues, and workflows.",
        )
        parser.add_argument(
            "--concurrency",
            type=count,
            metavar="N",
            help='How many runs may make progress at once. Default: CONTINUUM["CONCURRENCY"].',
        )
        parser.add_argument(
            "--threads",
            type=count,
            metavar="N",
            help='How many `def` activities may run at once. Default: CONTINUUM["ACTIVITY_THREADS"].',
        )
        parser.add_argument(
            "--processes",
            type=count,
            metavar="N",
            help='Worker processes under one parent. Default: CONTINUUM["PROCESSES"], else one for each processor that '
            f"may be used, at most {processors.MOST_PROCESSES}; one with --burst or --reload.",
        )
        parser.add_argument("--burst", action="store_true", help="Stop when nothing is left to do.")
        parser.add_argument(
            "--drain-timeout",
            type=_seconds,
            metavar="S",
            help='Seconds that running activities get to end when it stops. Default: CONTINUUM["DRAIN_TIMEOUT"].',
        )
        parser.add_argument(
            "--probe",
            type=_address_of_probe,
            metavar="[HOST:]PORT",
            help="Answer HTTP requests for /live and /ready there, for an orchestrator: for all processes.",
        )
        parser.add_argument("--reload", action="store_true", help="Start anew when code changes. For development.")
        add_database(parser)

    def get_check_kwargs(self, options: dict[str, Any]) -> dict[str, Any]:
        """Have the database's own checks made as well: an old server is better refused now than met later."""
        databases = []
        with suppress(ImproperlyConfigured):  # a wrong setting is for the checks to name
            wanted = (options["database"] or continuum_settings.DATABASE, continuum_settings.LISTEN_DATABASE)
            databases = [alias for alias in wanted if alias in connections]
        return {**super().get_check_kwargs(options), "databases": databases}

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve, and exit with the worker's status."""
        verbosity = options["verbosity"]
        supervised = end_with_parent()
        node = _node_options(options, supervised)
        processes = self._processes(options)
        if options["reload"] and processes > 1:
            raise CommandError("--reload works with one process: leave out --processes.", returncode=2)
        if not supervised:
            if processes > 1:
                discovery.autodiscover()  # what is wrong there is said once, and not by each process
            self._require_migrations(node.database)
            log.set_up(node.name, verbosity)
            if verbosity and not (options["reload"] and os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true"):
                self.stdout.write(self._banner(node, processes))
        else:
            log.set_up(node.name, verbosity)
        # Django's connection of this thread is needed no more, and would stay open for as long as the worker lives.
        connections.close_all()
        if options["reload"]:
            self._serve_and_reload(node)
            return
        if processes > 1:
            status = self._supervise(node, self._child_command(options), processes)
        else:
            # Imported late: --help and a refusal need no engine.
            from continuum.worker.node import run_node

            status = run_node(node)
        if status:
            sys.exit(status)

    def _processes(self, options: dict[str, Any]) -> int:
        """Return how many processes are meant."""
        if options["processes"] is not None:
            return options["processes"]
        # A burst is short as a rule, and would mostly wait for the other processes to start.
        if options["reload"] or options["burst"]:
            return 1
        if continuum_settings.PROCESSES is not None:
            return continuum_settings.PROCESSES
        # Whoever calls the command from code may do so in a thread, or have prepared this process as no other would be.
        if not self._called_from_command_line or _command_line() is None:
            return 1
        return processors.by_default()

    @staticmethod
    def _supervise(node: NodeOptions, command: list[str], processes: int) -> int:
        # Those of a pool stay open otherwise, and this process needs none.
        for connection in connections.all(initialized_only=True):
            if hasattr(connection, "close_pool"):
                connection.close_pool()
        probes = None
        if node.probe is not None:
            try:
                probes = JointProbes(node.probe, name=node.name, lease_ttl=continuum_settings.LEASE_TTL)
            except OSError as error:
                logger.critical("cannot answer probes: %s", error)
                return 1
        try:
            return Supervisor(
                command, processes, burst=node.burst, drain_timeout=node.drain_timeout, probes=probes
            ).run()
        finally:
            if probes is not None:
                probes.close()

    def _require_migrations(self, alias: str) -> None:
        try:
            executor = MigrationExecutor(connections[alias])
            ends = [node for node in executor.loader.graph.leaf_nodes() if node[0] == "continuum"]
            missing = [
                migration.name for migration, _ in executor.migration_plan(ends) if migration.app_label == "continuum"
            ]
        except DatabaseError as error:
            raise CommandError(f"Cannot reach the database {_address(alias)}: {str(error).strip()}") from error
        if missing:
            raise CommandError(
                f"The database {_address(alias)} lacks {_listed(missing)} of continuum: "
                f"run `manage.py migrate continuum{'' if alias == 'default' else f' --database {alias}'}` first."
            )

    def _banner(self, node: NodeOptions, processes: int) -> str:
        workflows = [f"{workflow.name}@{workflow.version}" for workflow in registry.workflows()]
        activities = [activity.name for activity in registry.activities()]
        ran = _some(workflows) or 'none: nothing can run here (see CONTINUUM["WORKFLOW_MODULES"])'
        if node.queues and DEFAULT_QUEUE not in node.queues:
            ran = "none: they run where the default queue is served"
        listen = continuum_settings.LISTEN_DATABASE or node.database
        lines = [
            ("worker", node.name + (", until nothing is left to do" if node.burst else "")),
            ("database", _address(node.database)),
            ("wake-ups", f"by notification on {listen!r}, else every {continuum_settings.POLL_INTERVAL:g} s"),
            ("queues", ", ".join(node.queues) if node.queues else "all"),
            (
                "capacity",
                f"{counted(node.concurrency, 'run')} and {counted(node.threads, 'thread')} in each of "
                f"{counted(processes, 'process', 'processes')}",
            ),
            ("workflows", ran),
            ("activities", _some(activities) or "none"),
        ]
        return "\n".join([f"Continuum {continuum.__version__}", *[_wrapped(name, what) for name, what in lines]])

    def _child_command(self, options: dict[str, Any]) -> list[str]:
        """Return the command line of one process of several."""
        if self._called_from_command_line:
            command = _command_line()
            if command is None:
                raise CommandError(
                    "Several processes are started as this one was, and it was not started with a script or a module: "
                    "use --processes=1, or manage.py.",
                    returncode=2,
                )
            return [*command, "--processes=1"]  # the last one counts
        command = [sys.executable, "-m", "django", "continuum_worker", f"--verbosity={options['verbosity']}"]
        for name in ("concurrency", "threads", "drain_timeout", "database"):
            if options[name] is not None:
                command.append(f"--{name.replace('_', '-')}={options[name]}")
        if options["queues"]:
            command.append(f"--queues={','.join(options['queues'])}")
        return [*command, *(["--burst"] if options["burst"] else [])]

    def _serve_and_reload(self, options: NodeOptions) -> None:
        from continuum.worker.node import Node

        node = Node(options)
        # The reloader is two processes, of which one serves, in a thread.
        ended = threading.Event()
        ended.set()

        def serve() -> None:
            ended.clear()
            try:
                status = asyncio.run(node.run())
            finally:
                ended.set()
            if options.burst:
                os._exit(status)

        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            _leave_first_interrupt_to_child()
        try:
            autoreload.run_with_reloader(serve)
        finally:
            # Code has changed, or it is the end: give the runs back rather than leave them to be taken for lost.
            node.stop()
            ended.wait(options.drain_timeout)


def _node_options(options: dict[str, Any], supervised: bool) -> NodeOptions:
    alias = database(options["database"])
    drain_timeout = options["drain_timeout"]
    return NodeOptions(
        database=alias,
        queues=options["queues"],
        concurrency=options["concurrency"] or continuum_settings.CONCURRENCY,
        threads=options["threads"] or continuum_settings.ACTIVITY_THREADS,
        burst=options["burst"],
        drain_timeout=continuum_settings.DRAIN_TIMEOUT if drain_timeout is None else drain_timeout,
        name=f"{socket.gethostname()}:{os.getpid()}",
        probe=None if supervised else options["probe"],
        asked_by=descriptor_of(ASKED_BY) if supervised else None,
        stays_for=descriptor_of(OTHERS_PIPE) if supervised else None,
    )


def _leave_first_interrupt_to_child() -> None:
    """Let Ctrl-C, which a terminal sends to all its processes, be for the one that serves.

    Interrupted itself, this one would kill it a quarter of a second later, whether its runs are given back or not. The
    second Ctrl-C ends both.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.default_int_handler))


def _command_line() -> list[str] | None:
    """Return what started this process, with `-m`, --settings, --pythonpath and -X; None if that cannot be repeated."""
    try:
        return [str(argument) for argument in autoreload.get_child_arguments()]
    except RuntimeError:  # `python -c`, say
        return None


def _address(alias: str) -> str:
    settings = connections[alias].settings_dict
    options = settings["OPTIONS"]
    host = settings["HOST"] or options.get("host") or ""
    port = settings["PORT"] or options.get("port") or ""
    if service := options.get("service"):
        place = f" (service {service})"
    elif not host or host.startswith("/"):
        place = " (local socket)"
    else:
        place = f" on {host}{f':{port}' if port else ''}"
    return f"{settings['NAME'] or alias}{place}"


def _wrapped(name: str, what: str) -> str:
    return textwrap.fill(
        f"{name:<10}  {what}",
        width=110,
        initial_indent="  ",
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _listed(names: list[str]) -> str:
    return ("migration " if len(names) == 1 else "migrations ") + ", ".join(names)


def _some(names: list[str]) -> str:
    """Return how many there are and which, the first dozen of them."""
    if not names:
        return ""
    shown = ", ".join(names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return f"{len(names)}: {shown}" + (f" and {more} more" if more > 0 else "")


def _queues(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of queue names such as default,mail")
    return names


def _address_of_probe(text: str) -> tuple[str | None, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or not 0 < int(port) < 65_536 or (":" in text and not host):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, or host:port, such as 8080 or 127.0.0.1:8080")
    return host or None, int(port)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return number
