"""Liveness and readiness of a worker for those who orchestrate it, over HTTP: ``/live`` and ``/ready``.

Served by the worker's own loop, so that one which no longer turns does not answer, which is what it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continuum.worker.node import Node

__all__ = ["answering", "health", "is_live"]

logger = logging.getLogger("continuum.worker")

# For so many times the lease's length a worker without one is thought to come back by itself: a database that is away
# is no reason to restart it.
PATIENCE = 3
# What is not a request by then, or is longer, is not one of ours.
REQUEST_TIMEOUT = 5.0
MOST_BYTES = 8192


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


@asynccontextmanager
async def answering(node: Node) -> AsyncIterator[None]:
    """Answer probes of ``node`` for the length of a block, if its options say where.

    Raises:
        OSError: nothing can listen there.
    """
    address = node.options.probe
    if address is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(node, head.split(b"\r\n", 1)[0]))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    host, port = address
    server = await asyncio.start_server(answer, host, port, limit=MOST_BYTES)
    logger.info("answering /live and /ready on port %d", port)
    try:
        yield
    finally:
        server.close()


def _response(node: Node, line: bytes) -> bytes:
    method, _, rest = line.decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    said = health(node)
    if path not in ("/live", "/ready"):
        status, said = HTTPStatus.NOT_FOUND, {"error": "there are /live and /ready"}
    elif method not in ("GET", "HEAD"):
        status, said = HTTPStatus.METHOD_NOT_ALLOWED, {"error": "use GET"}
    else:
        well = said["state"] == "serving" if path == "/ready" else is_live(node, said["state"])
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    body = json.dumps(said).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
