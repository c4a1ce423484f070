"""Fills the tables with runs by the million, as a shop would leave them behind: ended, and some alive.

    python -m benchmarks.filling postgresql:///shop --runs 1000000 --events 20 --live 100000 --days 180

Everything is written by a few statements inside the server. The same number of runs gives the same rows, but for the
time they end at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from benchmarks.live_runs import STEPS, make_live
from continuum.worker.partitions import ensure_partitions

__all__ = ["NAMESPACES", "RARE_WORKFLOW", "WORKFLOWS", "fill", "fill_from"]

#: Workflows with their shares, in percent; each run in ten thousand is one of ``RARE_WORKFLOW`` instead.
WORKFLOWS = {
    "shop.workflows.order_flow": 40,
    "shop.workflows.invoice_flow": 25,
    "shop.workflows.mail_flow": 15,
    "shop.workflows.import_flow": 10,
    "shop.workflows.refund_flow": 7,
    "shop.workflows.export_flow": 3,
}
RARE_WORKFLOW = "shop.workflows.recall_flow"
NAMESPACES = {"default": 80, "billing": 15, "support": 4, "audit": 1}
STATES = {"completed": 94, "failed": 4, "cancelled": 2}
SPAN = timedelta(days=60)
PLANS = {"free": 50, "pro": 45, "enterprise": 5}

# What all runs are made from, for whichever engine. "n" counts the runs; "dice" and "other" are numbers from 0 to 99
# that follow from it, as does all that looks random. An id is the moment its run was started at, followed by a digest.
SAMPLE = """
SELECT
    n, digest, moment AS started_at, took,
    (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7' || substr(digest, 1, 3)
        || '8' || substr(digest, 4, 15))::uuid AS id,
    CASE WHEN n %% 10000 = 17 THEN %(rare)s ELSE {workflow} END AS workflow,
    {namespace} AS namespace,
    {state} AS state,
    CASE WHEN n %% 10 = 3 THEN '{{}}' ELSE jsonb_build_object(
        'plan', {plan}, 'region', 'r' || n %% 8, 'customer', 'c' || abs(hashint8(n)) %% 50000, 'order', n,
        'address', jsonb_build_object('country', 'x' || n %% 30)
    ) || CASE WHEN n %% 10000 = 18 THEN '{{"flagged": true}}'::jsonb ELSE '{{}}' END END AS attributes
FROM (
    SELECT
        n, md5(n::text) AS digest,
        %(until)s::timestamptz - %(span)s::interval * ((%(runs)s - n + 1)::float8 / %(runs)s) AS moment,
        interval '1 ms' * (20 + abs(hashint8(n + 7)) %% 5000) AS took,
        abs(hashint8(n * 2)) %% 100 AS dice, abs(hashint8(n * 2 + 1)) %% 100 AS other,
        abs(hashint8(-n)) %% 100 AS third, abs(hashint8(-2 * n)) %% 100 AS fourth
    FROM generate_series(1, %(runs)s::bigint) AS n
) AS numbers
"""

RUNS = """
INSERT INTO continuum_runs (
    id, correlation_id, workflow, version, version_hash, namespace, attributes, state, input, result, error,
    lease_token, started_at, claimed_at, completed_at, retention_until
)
SELECT
    id, id, workflow, 1 + (n > %(runs)s / 2)::integer, left(digest, 16), namespace, attributes, state,
    json_build_array(json_build_object('id', 'o' || n, 'cents', 100 + n %% 9900)),
    CASE WHEN state = 'completed' THEN json_build_object('state', 'shipped', 'receipt', 'ch_' || n) END,
    CASE WHEN state = 'failed' THEN json_build_object(
        'type', 'ActivityError', 'message', 'card declined', 'traceback', repeat('  at line ' || n, 8), 'details', NULL
    ) END,
    n, started_at, started_at + interval '5 ms', started_at + took, started_at + took + interval '30 days'
FROM ({sample}) AS made
"""

# What ``shop_flows.flow`` records: so many steps, and the end if it has ended.
EVENTS = """
INSERT INTO continuum_events (run_id, seq, type, command_id, name, data, recorded_at)
SELECT
    run.id, seq,
    CASE WHEN ends THEN 'run_' || run.state ELSE 'activity_completed' END,
    CASE WHEN NOT ends THEN '0:' || seq END,
    CASE WHEN NOT ends THEN 'shop.activities.step_' || seq %% {steps} END,
    CASE WHEN ends THEN '{{}}' ELSE
        '{{"args": [' || seq || '], "took": ' || 1000 + seq || ', "result": ' || seq || '}}'
    END::json,
    run.started_at + took * seq / last
FROM (
    SELECT *,
        coalesce(completed_at - started_at, interval '2 seconds') AS took,
        CASE WHEN completed_at IS NOT NULL THEN %(events)s ELSE (input -> 0 ->> 'steps')::integer END AS last
    FROM continuum_runs
) AS run
CROSS JOIN LATERAL generate_series(1, run.last) AS seq
CROSS JOIN LATERAL (SELECT run.completed_at IS NOT NULL AND seq = run.last AS ends) AS place
WHERE NOT EXISTS (SELECT FROM continuum_events AS event WHERE event.run_id = run.id AND event.seq = 1)
"""


def fill(
    cursor: Any,
    runs: int,
    events: int = 0,
    *,
    span: timedelta = SPAN,
    until: datetime | None = None,
    live: int = 0,
    version_hash: str = "",
    say: Callable[[str], object] = lambda text: None,
) -> None:
    """Fill the tables of a migrated database, and leave them vacuumed and analysed.

    Args:
        cursor: a DB-API cursor in autocommit.
        runs: how many runs.
        events: how many events each of them has.
        span: over how long they were started, evenly.
        until: when the last was started (aware); now, if not given.
        live: how many of them have not ended.
        version_hash: the hash of the code that most of the live ones were started with.
        say: is told what is done.
    """
    until = until or datetime.now(UTC)
    ensure_partitions(cursor, until - span, months_ahead=span.days // 28 + 2)
    parameters = {**_parameters(runs, span, until), "events": events}
    say(f"{runs:,} runs")
    with _without_indexes(cursor, say):
        cursor.execute(RUNS.format(sample=_sample()), parameters)
        if live:
            say(f"{live:,} of them live")
            make_live(cursor, live, runs=runs, events=events, until=until, version_hash=version_hash)
    if events:
        say(f"{runs * events:,} events")
        cursor.execute(EVENTS.format(steps=STEPS), parameters)
    say("vacuum")
    cursor.execute("VACUUM (ANALYZE) continuum_runs, continuum_events, continuum_activity_tasks, continuum_workers")


def fill_from(cursor: Any, statements: Iterable[str], runs: int, parameters: Mapping[str, Any] | None = None) -> None:
    """Fill another engine's tables with runs of the same kind, number and times.

    Args:
        cursor: a DB-API cursor in autocommit.
        statements: ``{sample}`` in them stands for the query that yields the runs.
        runs: how many.
        parameters: what the statements need besides.
    """
    known = {**_parameters(runs, SPAN, datetime.now(UTC)), **(parameters or {})}
    for statement in statements:
        text = statement.format(sample=_sample())
        cursor.execute(text, known if "%(" in text else None)


def _parameters(runs: int, span: timedelta, until: datetime) -> dict[str, Any]:
    return {"runs": runs, "rare": RARE_WORKFLOW, "until": until, "span": span}


def _sample() -> str:
    return SAMPLE.format(
        workflow=_shared("dice", WORKFLOWS),
        namespace=_shared("other", NAMESPACES),
        state=_shared("third", STATES),
        plan=_shared("fourth", PLANS),
    )


def _shared(number: str, shares: dict[str, int]) -> str:
    """Return the SQL that deals out names by a number from 0 to 99."""
    cases, top = [], 0
    for name, share in shares.items():
        top += share
        cases.append(f"WHEN {number} < {top} THEN '{name}'")
    return f"CASE {' '.join(cases)} END"


@contextmanager
def _without_indexes(cursor: Any, say: Callable[[str], object]) -> Iterator[None]:
    """Make the indexes anew afterwards, which takes less time than filling them row by row."""
    cursor.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'continuum_runs' AND indexname NOT LIKE '%pkey'"
    )
    indexes = cursor.fetchall()
    for name, _ in indexes:
        cursor.execute(f"DROP INDEX {name}")
    yield
    say("indexes")
    for _, definition in indexes:
        cursor.execute(definition)


def main() -> None:
    """Fill the database that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.filling", description=__doc__)
    parser.add_argument("database", help="address of a database with Continuum's tables")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=0, help="for each run")
    parser.add_argument("--live", type=int, default=0, help="how many of the runs have not ended")
    parser.add_argument("--days", type=float, default=60, help="over how long the runs were started")
    options = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    with psycopg.connect(options.database, autocommit=True) as connection, connection.cursor() as cursor:
        fill(cursor, options.runs, options.events, span=timedelta(days=options.days), live=options.live, say=say)
    say("done")


if __name__ == "__main__":
    main()
