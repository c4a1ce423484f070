"""``python -m tests.chaos --seed 7 --minutes 2 --workers 4 --runs 2000``: everything breaks, nothing may be lost.

Exits with 1 if something that must hold does not, and says what. The seed decides what goes wrong and in which order,
and what the clients start and say; how that falls together is up to the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=None, help="Decides what goes wrong. Default: any.")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="How many seeds, counted from the first.")
    parser.add_argument("--minutes", type=float, default=1.0, help="How long things go wrong, for each seed.")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--runs", type=int, default=None, help="How many to start. Default: 15 a second.")
    parser.add_argument(
        "--broken", choices=["notice", "journal", "transactions", "limits"], help="What the workers lack."
    )
    parser.add_argument(
        "--ambush", action="store_true", help="In place of a storm, one stop that meets the moment to stop a worker."
    )
    parser.add_argument("--deadline", type=float, default=90.0, help="Seconds within which runs must end after that.")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(100_000) if options.seed is None else options.seed
    if options.seeds == 1:
        return trial(seed, options)
    # Each in a process of its own, as Django's settings know one database.
    failed = [one for one in range(seed, seed + options.seeds) if _apart(one, options)]
    print(f"{options.seeds} seeds from {seed} on; {f'violations under {failed}' if failed else 'no violation'}")
    return 1 if failed else 0


def trial(seed: int, options: argparse.Namespace) -> int:
    """Let things go wrong as the seed says, on a server of their own; returns 1 if something was violated."""
    import django
    import psycopg
    from django.core.management import call_command

    from continuum.testing.postgres import EmbeddedPostgres

    # Durable, unlike the server of other tests: it is to crash.
    with EmbeddedPostgres.temporary({"max_connections": 200, "shared_buffers": "64MB"}) as server:
        with psycopg.connect(server.database_url(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE chaos")
        os.environ["DATABASE_URL"] = server.database_url("chaos")
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.chaos.settings"
        django.setup()
        call_command("migrate", run_syncdb=True, verbosity=0)

        from tests.chaos.trial import Trial

        logs = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        return Trial(seed, options, server, logs).run()


def _apart(seed: int, options: argparse.Namespace) -> bool:
    given = {name: getattr(options, name) for name in ("minutes", "workers", "runs", "broken", "deadline")}
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    arguments += ["--ambush"] * options.ambush
    return subprocess.run([sys.executable, "-m", "tests.chaos", f"--seed={seed}", *arguments]).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
