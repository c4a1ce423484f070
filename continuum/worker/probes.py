"""Liveness and readiness of a worker for those who orchestrate it, over HTTP: ``/live`` and ``/ready``.

Served by the worker's own loop, so that one which no longer turns does not answer, which is what it is asked for. One
of several processes is asked by its parent, which answers for all of them: see ``joint_probes.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continuum.worker.node import Node

__all__ = ["PATIENCE", "Report", "answering", "health", "is_live", "listen", "report"]

logger = logging.getLogger("continuum.worker")

# For so many times the lease's length a worker without one is thought to come back by itself: a database that is away
# is no reason to restart it.
PATIENCE = 3
# What is not a request by then, or is longer, is not one of ours.
REQUEST_TIMEOUT = 5.0
MOST_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to say to a probe.

    Attributes:
        said: how it is, as JSON values.
        live: there is hope for it without a restart.
        ready: it serves.
    """

    said: dict[str, Any]
    live: bool
    ready: bool


def health(node: Node) -> dict[str, Any]:
    """Return what a worker says of itself, as JSON values."""
    session, engine = node.session, node.engine
    lease = session.lease if session is not None else None
    if node.stopping:
        state = "draining"
    elif lease is not None:
        state = "serving" if lease.valid else "cut off"
    else:
        state = "starting" if node.worker_id is None else "cut off"
    return {
        "state": state,
        "name": node.name,
        "worker": node.worker_id,
        "live_runs": len(engine.live) if engine is not None and session is not None else 0,
        "last_renewal_age": None if lease is None else round(lease.age, 3),
    }


def is_live(node: Node, state: str) -> bool:
    """Tell whether there is hope for a worker without starting it anew."""
    if state in ("serving", "draining"):
        return True
    age = time.monotonic() - node.without_lease_since if node.session is None else node.session.lease.age
    return age < PATIENCE * node.lease_ttl


def report(node: Node) -> Report:
    """Return what a worker has to say to a probe."""
    said = health(node)
    return Report(said, live=is_live(node, said["state"]), ready=said["state"] == "serving")


@asynccontextmanager
async def answering(node: Node) -> AsyncIterator[None]:
    """Answer probes of ``node`` for the length of a block, if its options say where.

    Raises:
        OSError: nothing can listen there.
    """
    options = node.options

    async def asked() -> Report:
        return report(node)

    server = None if options.probe is None else await listen(options.probe, asked)
    telling = None if options.asked_by is None else asyncio.create_task(_tell(node, options.asked_by))
    try:
        yield
    finally:
        if server is not None:
            server.close()
        if telling is not None:
            telling.cancel()


async def listen(address: tuple[str | None, int], ask: Callable[[], Awaitable[Report]]) -> asyncio.Server:
    """Answer probes at an address (host, or None for all, and port) with what ``ask`` returns, until closed.

    Raises:
        OSError: nothing can listen there.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head.split(b"\r\n", 1)[0], await ask()))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    host, port = address
    server = await asyncio.start_server(answer, host, port, limit=MOST_BYTES)
    logger.info("answering /live and /ready on port %d", port)
    return server


async def _tell(node: Node, descriptor: int) -> None:
    """Answer each line that a parent writes with a line of JSON, until it is gone."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    try:
        while await reader.readline():
            writer.write(json.dumps(asdict(report(node))).encode() + b"\n")
    except OSError:
        pass  # the end of a parent has consequences elsewhere
    finally:
        writer.close()


def _response(line: bytes, report: Report) -> bytes:
    method, _, rest = line.decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    said = report.said
    if path not in ("/live", "/ready"):
        status, said = HTTPStatus.NOT_FOUND, {"error": "there are /live and /ready"}
    elif method not in ("GET", "HEAD"):
        status, said = HTTPStatus.METHOD_NOT_ALLOWED, {"error": "use GET"}
    else:
        well = report.ready if path == "/ready" else report.live
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    body = json.dumps(said).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
