"""W7c: what telling the workers costs those who start runs, sixteen at a time, on a server with slow commits.

Each client is a process, as those of a web tier are. All start runs one by one for a while, then again without a word
to the workers, and so on in turn, so that whatever else the machine does meets both. Beside the rates stands the
processor time that a start takes, clients and server together: on a busy machine the steadier figure.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import psycopg

from benchmarks.contenders import Contender
from benchmarks.figures import Figure
from benchmarks.usage import cpu_seconds

__all__ = ["COMMIT_DELAY", "FIGURES", "ONLY", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "stretches of 16 processes starting runs, with and without hints, with commit_delay=1000 and commit_siblings=0"
FIGURES = (
    Figure("hints", "starts/s, workers are told", "higher"),
    Figure("silence", "starts/s, nobody is told"),
    Figure("lost", "% of the rate lost to telling them", "lower"),
    Figure("cpu_hints", "µs of CPU a start, workers are told", "lower"),
    Figure("cpu_silence", "µs of CPU a start, nobody is told"),
    Figure("cpu_lost", "% of the CPU spent on telling them", "lower"),
    Figure("per_hint", "starts that share a hint, over all stretches with hints"),
)
SIZE, QUICK = 24, 8
COMMIT_DELAY = 1000
ONLY = ("continuum",)
CLIENTS = 16
SECONDS = 1.0
PATIENCE = 60.0


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    # With hints or without, and the other way round in the next pair; one stretch to warm up.
    told = [True, *(turn for pair in range(size // 2) for turn in ((True, False), (False, True))[pair % 2])]
    contender.disconnect()
    context = multiprocessing.get_context("fork")
    together, answers = context.Barrier(CLIENTS + 1), context.Queue()
    clients = [context.Process(target=_client, args=(contender, together, told, answers)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    # A worker's ears, without its work: a hint is not paid for before somebody hears it.
    with psycopg.connect(contender.address.url, autocommit=True) as listener:
        listener.execute("LISTEN continuum_ready")
        server = [contender.observer.server_pid()]
        server_us = [cpu_seconds(server) * 1e6]
        for _ in told:
            together.wait(PATIENCE)
            until = time.perf_counter() + SECONDS
            while (left := until - time.perf_counter()) > 0:
                for _ in listener.notifies(timeout=left):
                    pass
            together.wait(PATIENCE)
            server_us.append(cpu_seconds(server) * 1e6)
    found, hints = map(list, zip(*(answers.get(timeout=PATIENCE) for _ in clients), strict=True))
    for client in clients:
        client.join(PATIENCE)
    started = [sum(count for count, _ in stretch) for stretch in zip(*found, strict=True)]
    queued = contender.observer.value(contender.unfinished_query)
    if queued != sum(started):
        raise AssertionError(f"{queued} runs are queued, not {sum(started)}")
    clients_us = [sum(used for _, used in stretch) for stretch in zip(*found, strict=True)]
    cpu_us = [
        (used + after - before) / count
        for used, before, after, count in zip(clients_us, server_us, server_us[1:], started, strict=False)
    ]
    rates = _pairs([count / SECONDS for count in started], told)
    cpu = _pairs(cpu_us, told)
    return {
        "hints": statistics.median(one for one, _ in rates),
        "silence": statistics.median(other for _, other in rates),
        "lost": 100 * statistics.median(1 - one / other for one, other in rates),
        "cpu_hints": statistics.median(one for one, _ in cpu),
        "cpu_silence": statistics.median(other for _, other in cpu),
        "per_hint": sum(count for count, loud in zip(started, told, strict=True) if loud) / sum(hints),
        "cpu_lost": 100 * statistics.median(1 - other / one for one, other in cpu),
    }


def _pairs(values: list[float], told: list[bool]) -> list[tuple[float, float]]:
    """Return what belongs together, with hints and without. The first stretch was to warm up."""
    return [
        (one, other) if hints else (other, one)
        for one, other, hints in zip(values[1::2], values[2::2], told[1::2], strict=True)
    ]


def _client(contender: Contender, together: Barrier, told: list[bool], answers: Any) -> None:
    from continuum import hint_sender, hints

    tell, command = hints.send_ready, hint_sender._command
    found = []
    number = sent = 0

    def counted(*args: Any) -> bytes:
        nonlocal sent
        sent += 1
        return command(*args)

    hint_sender._command = counted
    for loud in told:
        hints.send_ready = tell if loud else lambda alias: None
        together.wait(PATIENCE)
        until, before, used = time.perf_counter() + SECONDS, number, time.process_time()
        while time.perf_counter() < until:
            contender.start("one_step", number)
            number += 1
        hints.flush(1.0)
        found.append((number - before, (time.process_time() - used) * 1e6))
        together.wait(PATIENCE)
    answers.put((found, sent))
    contender.disconnect()
