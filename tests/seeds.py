"""``python -m tests.seeds --seeds 20``: the property and chaos tests under one random seed after the other.

Exits with 1 if anything fails, and says under which seed: the same seed fails again, as far as chance is in the test
and not in the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROPERTIES = (
    "tests/core/test_properties.py",
    "tests/core/test_resuming.py",
    "tests/test_values_properties.py",
    "tests/test_worker_parts.py",
)


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.seeds", description=__doc__.partition("\n")[0])
    parser.add_argument("--first", type=int, default=None, metavar="SEED", help="The first seed. Default: any.")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="How many, counted from the first.")
    parser.add_argument("--examples", type=int, default=500, metavar="N", help="Programs each property test tries.")
    parser.add_argument("--minutes", type=float, default=1.0, help="How long a storm lasts; 0 leaves them out.")
    options = parser.parse_args(arguments)
    first = random.SystemRandom().randrange(100_000) if options.first is None else options.first
    failed = []
    for seed in range(first, first + options.seeds):
        began = time.monotonic()
        trials = [("properties", properties(seed))]
        if options.minutes > 0:
            trials.append(("chaos", chaos(seed, options.minutes)))
        broken = [name for name, command in trials if run(command, options.examples)]
        failed += [f"{name} {seed}" for name in broken]
        print(f"seed {seed}: {', '.join(broken) or 'fine'} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{options.seeds} seeds from {first} on; {'failed: ' + ', '.join(failed) if failed else 'nothing failed'}")
    return 1 if failed else 0


def properties(seed: int) -> list[str]:
    """The command that runs the property tests under a seed."""
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}", *PROPERTIES]


def chaos(seed: int, minutes: float) -> list[str]:
    """The command that lets a storm loose under a seed."""
    return ["-m", "tests.chaos", "--seed", str(seed), "--minutes", str(minutes), "--workers", "3"]


def run(command: list[str], examples: int) -> bool:
    """Run a command of this Python; returns whether it failed, and prints what it said then."""
    environment = os.environ | {"HYPOTHESIS_PROFILE": "thorough", "HYPOTHESIS_EXAMPLES": str(examples)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(f"$ python {' '.join(command)}\n{done.stdout}", flush=True)
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
