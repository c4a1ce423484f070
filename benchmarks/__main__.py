"""``python -m benchmarks``: measures Continuum and its peers in alternating rounds on one PostgreSQL."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import report, workloads
from benchmarks.contenders import CONTENDERS, load
from benchmarks.processes import ROOT, kill_tree
from benchmarks.report import OURS, Results
from benchmarks.server import Server

ROUND_TIMEOUT = 300.0
PACKAGES = {"continuum": "django-continuum", "dbos": "dbos", "absurd": "absurd-sdk"}


def main() -> int:
    """Measure, print, and return the exit status: 1 if anything failed."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as with Ctrl-C: nothing is left running
    every: list[Results] = []
    began = time.monotonic()
    with Server(options.commit_delay, options.directory) as server:
        missing = _install(server, options.contenders)
        for name in options.only:
            every.append(_measured(server, name, options, missing))
            print("\n" + report.text(every[-1]), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    if options.markdown:
        options.markdown.write_text(report.markdown(every, _preface(options)))
    return int(any(results.failures for results in every))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=_names(workloads.WORKLOADS), metavar="W1,W2", help="some workloads only")
    parser.add_argument("--contenders", type=_names(CONTENDERS), default=list(CONTENDERS), metavar="A,B")
    parser.add_argument("--configurations", type=_names(("default", "tuned")), help="of the peers")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each contender (3; 1 with --quick)")
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes of Continuum (its own default)")
    parser.add_argument("--commit-delay", type=int, default=0, metavar="US", help="for the server as a whole")
    parser.add_argument("--directory", type=Path, help="where PostgreSQL keeps its files: /dev/shm takes the disk out")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, peers tuned only: under a minute")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as well")
    options = parser.parse_args()
    if options.quick:
        options.configurations = options.configurations or ["tuned"]
        options.only = options.only or [name for name in workloads.WORKLOADS if name != "w1d"]
    options.only = options.only or list(workloads.WORKLOADS)
    options.configurations = options.configurations or ["default", "tuned"]
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = [name.strip().lower() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}, but {', '.join(known)}")
        return names

    return parse


def _install(server: Server, contenders: list[str]) -> dict[str, str]:
    """Make each contender's template database; return why there is none of some."""
    missing = {}
    for contender in contenders:
        address = server.create(f"template_{contender}")
        answer = _session({"contender": contender, "workload": "install", "address": address})
        if "error" in answer:
            missing[contender] = answer["error"]
    return missing


def _measured(server: Server, name: str, options: argparse.Namespace, missing: dict[str, str]) -> Results:
    workload = workloads.load(name)
    size = workload.QUICK if options.quick else workload.SIZE
    results = Results(name, workload.TITLE, size, workload.FIGURES)
    entries = [
        (contender, configuration)
        for contender in options.contenders
        if contender in getattr(workload, "ONLY", options.contenders)
        for configuration in (["default"] if contender == OURS else options.configurations)
    ]
    for contender, configuration in entries:
        results.rounds[_label(contender, configuration)] = []
    for number in range(options.rounds):
        # Who goes first changes, so that a machine that gets slower or faster meanwhile favours nobody.
        for contender, configuration in entries if number % 2 == 0 else reversed(entries):
            label = _label(contender, configuration)
            if contender in missing:
                results.failures[label] = missing[contender]
            if label in results.failures:
                continue
            results.floor.append(server.commits_a_second())
            answer = _round(server, workload, size, name, contender, configuration, options)
            if "error" in answer:
                results.failures[label] = answer["error"]
            else:
                results.rounds[label].append(answer["figures"])
            floor = f"{results.floor[-1]:,.0f} commits/s"
            print(f"  {name} {number + 1}, {floor}, {label}: {_short(answer)}", file=sys.stderr, flush=True)
    return results


def _round(
    server: Server,
    workload: ModuleType,
    size: int,
    name: str,
    contender: str,
    configuration: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    address = server.fresh(f"template_{contender}")
    try:
        with _commit_delay(server, getattr(workload, "COMMIT_DELAY", None)):
            return _session(
                {
                    "contender": contender,
                    "configuration": configuration,
                    "workload": name,
                    "address": address,
                    "processes": options.processes,
                    "size": size,
                }
            )
    finally:
        server.drop(address)


@contextmanager
def _commit_delay(server: Server, microseconds: int | None) -> Iterator[None]:
    if microseconds is None:
        yield
        return
    server.set_commit_delay(microseconds)
    try:
        yield
    finally:
        server.set_commit_delay(None)


def _session(order: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.session", json.dumps(order)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as session:
        try:
            said, errors = session.communicate(timeout=ROUND_TIMEOUT)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {ROUND_TIMEOUT:g} s"}
        finally:
            if session.poll() is None:
                kill_tree(session)
    try:
        return json.loads(said)
    except ValueError:
        return {"error": " ".join(f"status {session.returncode}: {errors[-500:]}".split())}


def _label(contender: str, configuration: str) -> str:
    return contender if contender == OURS else f"{contender}, {configuration}"


def _short(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"FAILED: {answer['error'][: report.LONGEST_FAILURE]}"
    return ", ".join(f"{key} {value:,.4g}" for key, value in answer["figures"].items())


def _preface(options: argparse.Namespace) -> Iterator[str]:
    python = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    yield f"{date.today():%Y-%m-%d}, {python}, {options.rounds} rounds."
    if options.directory:
        yield f"PostgreSQL's files lie in {options.directory}."
    yield ""
    for contender in options.contenders:
        try:
            found = version(PACKAGES[contender])
        except PackageNotFoundError:
            found = "from the checkout" if contender == OURS else "not installed"
        for configuration, what in load(contender).configurations.items():
            if contender == OURS or configuration in options.configurations:
                yield f"* {_label(contender, configuration)} ({found}): {what}"


if __name__ == "__main__":
    sys.exit(main())
