"""``python -m benchmarks.at_size``: how long what people look at takes, on a database as a year of work leaves it.

    python -m benchmarks.at_size --markdown at_size.md                      # 1,000,000 runs, 20,000,000 events
    python -m benchmarks.at_size --runs 100000 --live 10000 --events 20     # a tenth of it

Fills a PostgreSQL of its own, asks, and deletes it; ``--directory`` keeps it, for another time. Every page and command
is taken three times and the best counts: the whole response, client and server together. Last comes what changes the
tables, pruning; with ``--keep`` it is left out.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from continuum.testing.postgres import EmbeddedPostgres

# What is measured is not the disk: filling would take twice as long, and pruning is told in rows and bytes of log.
OPTIONS = {
    "fsync": "off",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "512MB",
    # So that all the CPU a question takes is that of one process, and seen.
    "max_parallel_workers_per_gather": 0,
}
TIMES = 3
NOBODY = "x" * 12


@dataclass(frozen=True, slots=True)
class Taken:
    """What something took, at best.

    Attributes:
        what: what it was.
        wall: seconds by the clock.
        client: seconds of CPU of this process.
        server: seconds of CPU of its PostgreSQL process; 0 where the system does not tell.
        queries: how many.
        scans: large tables that were read in whole.
    """

    what: str
    wall: float
    client: float
    server: float
    queries: int
    scans: str


def main() -> int:
    """Fill, measure, print a table."""
    options = _options()
    with _server(options.directory) as server:
        os.environ["DATABASE_URL"] = server.database_url()
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.at_size_settings"
        import django

        django.setup()
        _fill(options)
        table: list[str] = []

        def tell(line: str) -> None:
            print(line, flush=True)
            table.append(line)

        tell("| what | ms | CPU, client | CPU, server | queries | read in whole |")
        tell("|---|--:|--:|--:|--:|---|")
        for taken in _looks():
            times = " | ".join(f"{each * 1000:,.0f}" for each in (taken.wall, taken.client, taken.server))
            tell(f"| {taken.what} | {times} | {taken.queries} | {taken.scans} |")
        if not options.keep:
            tell("")
            for line in _pruning():
                tell(line)
        if options.markdown:
            options.markdown.write_text("\n".join(table) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.at_size", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--live", type=int, default=100_000, help="how many of them have not ended")
    parser.add_argument("--events", type=int, default=20, help="for each run")
    parser.add_argument("--days", type=float, default=180, help="over how long they were started")
    parser.add_argument("--directory", type=Path, help="where the server's files are kept; filled if it is new")
    parser.add_argument("--keep", action="store_true", help="prune nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    return parser.parse_args()


@contextmanager
def _server(directory: Path | None) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres.temporary(OPTIONS) if directory is None else EmbeddedPostgres(directory, OPTIONS)
    with server:
        yield server


def _fill(options: argparse.Namespace) -> None:
    from django.core.management import call_command
    from django.db import connection

    from benchmarks import shop_flows
    from benchmarks.filling import fill
    from continuum.models import Run

    call_command("migrate", verbosity=0)
    if Run.objects.exists():
        return
    began = time.monotonic()
    with connection.cursor() as cursor:
        fill(
            cursor,
            options.runs,
            options.events,
            span=timedelta(days=options.days),
            live=options.live,
            version_hash=shop_flows.flow.version_hash,
            say=lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True),
        )


def _looks() -> Iterator[Taken]:
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import reverse

    import continuum
    from benchmarks.filling import RARE_WORKFLOW
    from continuum import health, retention
    from continuum.audit import audit
    from continuum.audit.proofs import prove_live_histories
    from continuum.models import HistoryEvent, Run

    client = Client()
    User.objects.filter(username="on-call").delete()
    client.force_login(User.objects.create_superuser("on-call"))
    runs = reverse("admin:continuum_run_changelist")

    def page(address: str, **query: Any) -> Callable[[], None]:
        def get() -> None:
            response = client.get(address, query)
            if response.status_code != 200:
                raise AssertionError(f"{address} {query}: status {response.status_code}")

        return get

    def run_page(run: Run) -> Callable[[], None]:
        return page(reverse("admin:continuum_run_change", args=[run.pk]))

    some = Run.objects.order_by("-id")[1000]
    long = Run.objects.order_by("-id")[0]
    if HistoryEvent.objects.filter(run_id=long.pk).count() < 1000:
        raise AssertionError("the newest run has no long history")
    pages = {
        "list of runs": page(runs),
        "page 100 of it": page(runs, p=100),
        "of a state: completed": page(runs, state__exact="completed"),
        "failed": page(runs, state__exact="failed"),
        "stuck": page(runs, state__exact="stuck_unknown_version"),
        "suspended": page(runs, state__exact="suspended"),
        "of a workflow": page(runs, workflow="shop.workflows.order_flow"),
        "of a rare workflow": page(runs, workflow=RARE_WORKFLOW),
        "of a workflow, failed": page(runs, workflow="shop.workflows.order_flow", state__exact="failed"),
        "of a namespace": page(runs, namespace="billing"),
        "with a common attribute (45 %)": page(runs, q="plan:pro"),
        "with a rare attribute (1 in 10,000)": page(runs, q="flagged:true"),
        "with an attribute that no run has": page(runs, q=f"plan:{NOBODY}"),
        "with a part of a workflow's name": page(runs, q="refund"),
        "with a part that no name has": page(runs, q=NOBODY),
        "with the beginning of an id": page(runs, q=str(some.pk)[:13]),
        "page of a run with 20 events": run_page(some),
        "page of a run with 10,000 events": run_page(long),
        "dashboard, last hour": page(reverse("admin:continuum_dashboard_changelist")),
        "dashboard, last day": page(reverse("admin:continuum_dashboard_changelist"), range="24h"),
        "dashboard, last week": page(reverse("admin:continuum_dashboard_changelist"), range="7d"),
        "workers": page(reverse("admin:continuum_worker_changelist")),
    }
    for what, look in pages.items():
        yield _taken(f"admin: {what}", look)
    searches: dict[str, dict[str, Any]] = {
        "newest 25": {},
        "of a workflow and a state": {
            "where": [("eq", "workflow", "shop.workflows.order_flow"), ("eq", "state", "failed")]
        },
        "live ones": {"where": [("in", "state", ["pending", "running", "suspended"])]},
        "common attribute": {"where": [("eq", ["attributes", "plan"], "pro")]},
        "rare attribute": {"where": [("eq", ["attributes", "flagged"], True)]},
    }
    for what, query in searches.items():
        yield _taken(f"`query()`: {what}", lambda query=query: continuum.query(**query))
    counts: dict[str, dict[str, Any]] = {
        "failed": {"where": [("eq", "state", "failed")]},
        "by state": {"group_by": "state"},
        "rare attribute": {"where": [("eq", ["attributes", "flagged"], True)]},
    }
    for what, query in counts.items():
        yield _taken(f"`count()`: {what}", lambda query=query: continuum.count(**query))
    commands = {
        "continuum_runs list": ("continuum_runs", "list"),
        "continuum_runs list --state failed": ("continuum_runs", "list", "--state", "failed"),
        "continuum_runs list --attribute plan=pro": ("continuum_runs", "list", "--attribute", "plan=pro"),
        "continuum_runs show, 20 events": ("continuum_runs", "show", str(some.pk)),
        "continuum_runs show, 10,000 events": ("continuum_runs", "show", str(long.pk)),
        "continuum_runs history, 10,000 events": ("continuum_runs", "history", str(long.pk)),
        "continuum_partitions": ("continuum_partitions",),
    }
    for what, arguments in commands.items():
        yield _taken(f"`{what}`", lambda arguments=arguments: _command(*arguments))
    yield _taken("`continuum_health`", health.examine)
    yield _taken("`continuum_audit`", lambda: audit("default"))
    yield _taken(
        "`continuum_audit --replay-sample 100`",
        lambda: audit("default", replay=prove_live_histories("default", sample=100)),
        times=1,
    )
    yield _taken("`continuum_prune`, without `--execute`", retention.survey)


def _command(*arguments: str) -> None:
    from django.core.management import call_command

    with redirect_stderr(io.StringIO()):
        call_command(*arguments, stdout=io.StringIO())


def _taken(what: str, look: Callable[[], Any], times: int = TIMES) -> Taken:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    samples = []
    for _ in range(times):
        before = (time.perf_counter(), *_cpu())
        look()
        after = (time.perf_counter(), *_cpu())
        samples.append(tuple(end - start for start, end in zip(before, after, strict=True)))
    scans = _scans()
    with CaptureQueriesContext(connection) as queries:
        look()
    scanned = [name for name, number in _scans().items() if number > scans.get(name, 0)]
    return Taken(what, *map(min, zip(*samples, strict=True)), len(queries), ", ".join(scanned))


def _cpu() -> tuple[float, float]:
    """Return the seconds of CPU that this process and its PostgreSQL process have had."""
    from django.db import connection

    usage = resource.getrusage(resource.RUSAGE_SELF)
    connection.ensure_connection()
    spent = Path(f"/proc/{connection.connection.info.backend_pid}/schedstat")
    server = int(spent.read_text().split()[0]) / 1e9 if spent.exists() else 0.0
    return usage.ru_utime + usage.ru_stime, server


def _scans() -> dict[str, int]:
    """Return how often each of the large tables has been read in whole."""
    from django.db import connection

    with connection.cursor() as cursor:
        # Each session reports what it did now and then; this one at once.
        cursor.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT relname, seq_scan FROM pg_stat_user_tables "
            "WHERE relname ~ '^continuum_(runs|events.*|inbox)$' AND n_live_tup > 1000"
        )
        return dict(cursor.fetchall())


def _pruning() -> Iterator[str]:
    from django.db import connection

    from continuum import retention
    from continuum.models import Run

    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE stays AS SELECT id FROM continuum_runs WHERE completed_at IS NULL")
        cursor.execute("INSERT INTO stays SELECT id FROM continuum_runs WHERE continued_to_run_id IS NOT NULL")
        expected = retention.survey()
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
        start = cursor.fetchone()[0]
        batches: list[float] = []
        last = began = time.perf_counter()

        def progress(done: int, total: int) -> None:
            nonlocal last
            batches.append(time.perf_counter() - last)
            last = time.perf_counter()

        done = retention.prune(on_progress=progress)
        took = time.perf_counter() - began
        cursor.execute("SELECT (pg_current_wal_insert_lsn() - %s::pg_lsn)::bigint", [start])
        log = cursor.fetchone()[0]
        cursor.execute(
            "SELECT count(*) FROM stays WHERE NOT EXISTS (SELECT FROM continuum_runs r WHERE r.id = stays.id)"
        )
        missing = cursor.fetchone()[0]
    # Meanwhile the time of some more was over.
    if missing or done.runs < expected.may_go.total():
        raise AssertionError(f"{missing} runs that live, or that a chain needs, are gone; {done} of {expected}")
    reading, *rest = batches
    rest.sort()
    yield (
        f"Pruning deleted {done.runs:,} runs and {done.events:,} events one by one in {took:,.0f} s, "
        f"{(done.runs + done.events) / took:,.0f} rows a second, with {log / 1e6:,.0f} MB of log "
        f"({log / (done.runs + done.events):,.0f} bytes a row), and dropped {len(done.months)} partitions."
    )
    middle, slow, slowest = rest[len(rest) // 2], rest[len(rest) * 99 // 100], rest[-1]
    yield (
        f"Until the first batch was done: {reading:,.1f} s. Batches of 1,000 runs: {middle * 1000:,.0f} ms at the "
        f"median, {slow * 1000:,.0f} at p99, {slowest * 1000:,.0f} at most. "
        f"All {Run.objects.filter(completed_at=None).count():,} live runs and their chains are there."
    )


if __name__ == "__main__":
    sys.exit(main())
