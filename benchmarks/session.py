"""One round of one contender, in a process of its own: ``python -m benchmarks.session '{"workload": "w1", …}'``.

Prints the figures, or what went wrong, as one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from benchmarks import contenders, workloads
from benchmarks.server import Address

__all__ = ["main", "run"]


def run(order: dict[str, Any]) -> dict[str, float]:
    """Carry out what ``order`` says and return the figures.

    Args:
        order: ``contender``, ``configuration``, ``workload``, ``address``, ``processes``, ``size``; or, with
            ``"install"`` as the workload, just the contender and the address.
    """
    contender_class = contenders.load(order["contender"])
    address = Address(*order["address"])
    if order["workload"] == "install":
        contender_class.install(address)
        return {}
    workload = workloads.load(order["workload"])
    with tempfile.TemporaryDirectory() as folder:
        contender = contender_class(
            address, order["configuration"], order["workload"], order["processes"], str(Path(folder) / "gate")
        )
        try:
            return workload.measure(contender, order["size"])
        except Exception as error:
            if said := contender.workers.tail():
                error.add_note(f"The workers' last words: {said}")
            raise
        finally:
            contender.close()


def main() -> None:
    """Take an order from the command line and print what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers are not left running
    answer: dict[str, Any]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = {"figures": run(json.loads(sys.argv[1]))}
        except Exception as error:
            traceback.print_exc()
            notes = " ".join(getattr(error, "__notes__", ()))
            answer = {"error": " ".join(f"{type(error).__name__}: {error} {notes}".split())}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
