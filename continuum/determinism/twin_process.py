"""The other end of :mod:`continuum.determinism.twin`: ``python -m continuum.determinism.twin_process FD``."""

from __future__ import annotations

import json
import logging
import math
import signal
import socket
import sys
from typing import Any
from uuid import UUID

import django

from continuum.core.history import Event
from continuum.core.identity import RunIdentity
from continuum.core.registry import registry
from continuum.determinism import guards, paranoid, twin
from continuum.exceptions import UnknownWorkflowError

__all__ = ["answer", "main"]

logger = logging.getLogger("continuum.run")


def main(descriptor: int) -> None:
    """Answer requests until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the worker, which ends this process by hanging up
    django.setup()
    with socket.socket(fileno=descriptor) as line, line.makefile("rwb") as stream, guards.guarding():
        stream.write(b"{}\n")
        stream.flush()
        while text := stream.readline():
            # Code that never comes back here ends the process, and must not outlive the worker.
            signal.alarm(math.ceil(twin.ANSWER_TIMEOUT))
            answered = answer(json.loads(text))
            signal.alarm(0)
            stream.write(json.dumps(answered).encode() + b"\n")
            stream.flush()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Live through the history of a request, and say where it leads; ``{}`` if that is not known here."""
    name, version, version_hash = request["workflow"]
    try:
        definition = registry.workflow(name, version)
    except UnknownWorkflowError:
        return {}
    if definition.version_hash != version_hash:
        return {}
    run = request["run"]
    for key in ("id", "parent_run_id", "seed"):
        run[key] = None if run[key] is None else UUID(run[key])
    shadow = paranoid.Shadow(definition, RunIdentity(**run), request["arguments"])
    events = [Event(*event) for event in request["events"]]
    try:
        return paranoid.live_through(shadow, request["began_us"], events)
    except Exception:
        logger.exception("run %s: its replay failed", run["id"])
        return {}


if __name__ == "__main__":
    main(int(sys.argv[1]))
