"""One answer for several worker processes: their parent asks each how it is, over a socket they share with it alone.

An orchestrator knows one container with one port. The whole is ready if all of them are, and live if all of them are.
A process that this parent starts again is no reason to restart the others; one that does not answer any more is, as
nobody else would notice.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

from continuum.worker.probes import PATIENCE, Report, listen

__all__ = ["ASKED_BY", "JointProbes"]

ASKED_BY = "CONTINUUM_ASKED_BY"
"""Environment variable with the file descriptor of the socket on which a parent asks."""

# Less than a request may take: whoever asks hears that one is silent.
ANSWER_TIMEOUT = 4.0

# Of the states of all, the first of these is that of the whole.
_WORST_FIRST = ("silent", "cut off", "starting", "draining", "serving")


class JointProbes:
    """Answers probes for the processes of a parent, from a thread of its own.

    Args:
        address: host, or None for all, and port.
        name: what people call the parent.
        lease_ttl: seconds; a process may take a few times as long to start.

    Raises:
        OSError: nothing can listen there.
    """

    def __init__(self, address: tuple[str | None, int], *, name: str, lease_ttl: float) -> None:
        self._name = name
        self._patience = PATIENCE * lease_ttl
        self._asked: dict[int, _Asked] = {}
        self._loop = asyncio.new_event_loop()
        try:
            # Here and now, so that a port that is taken is somebody's exception.
            self._server = self._loop.run_until_complete(listen(address, self._report))
        except OSError:
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._loop.run_forever, name="continuum-probes", daemon=True)
        self._thread.start()

    def started(self, number: int, ours: socket.socket) -> None:
        """A process has been started, or could not be: ``ours`` is this end of its socket."""
        self._loop.call_soon_threadsafe(self._add, number, ours)

    def ended(self, number: int) -> None:
        """A process has ended for good."""
        self._loop.call_soon_threadsafe(self._remove, number)

    def close(self) -> None:
        """Answer no more."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _add(self, number: int, ours: socket.socket) -> None:
        self._remove(number)
        self._asked[number] = _Asked(ours, self._patience)

    def _remove(self, number: int) -> None:
        if (gone := self._asked.pop(number, None)) is not None:
            gone.close()

    async def _close(self) -> None:
        self._server.close()
        left = [asked.close() for asked in self._asked.values()]
        self._asked.clear()
        await asyncio.gather(*left, return_exceptions=True)

    async def _report(self) -> Report:
        reports = await asyncio.gather(*(asked.report() for asked in self._asked.values()))
        states = {report.said["state"] for report in reports}
        said = {
            "state": next((state for state in _WORST_FIRST if state in states), "starting"),
            "name": self._name,
            "live_runs": sum(report.said.get("live_runs", 0) for report in reports),
            "processes": [report.said for report in reports],
        }
        ready = bool(reports) and all(report.ready for report in reports)
        return Report(said, live=all(report.live for report in reports), ready=ready)


class _Asked:
    """One process, and what is known of it."""

    def __init__(self, ours: socket.socket, patience: float) -> None:
        self._since = time.monotonic()
        self._patience = patience
        self._writer: asyncio.StreamWriter | None = None
        self._has_answered = False
        self._answer: asyncio.Future[Report] | None = None
        self._listening = asyncio.get_running_loop().create_task(self._listen(ours))

    async def report(self) -> Report:
        """Ask how it is, unless it has been asked already; its next answer serves all who wait."""
        if self._writer is not None:
            if self._answer is None or self._answer.done():
                self._answer = asyncio.get_running_loop().create_future()
                self._writer.write(b"?\n")
            answer = self._answer
            await asyncio.wait([answer], timeout=ANSWER_TIMEOUT if self._has_answered else 0.1)
            if answer.done() and not answer.cancelled():
                return answer.result()
        if self._writer is not None and self._has_answered:
            return Report({"state": "silent"}, live=False, ready=False)
        return Report({"state": "starting"}, live=time.monotonic() - self._since < self._patience, ready=False)

    async def _listen(self, ours: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            while line := await reader.readline():
                self._has_answered = True
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(Report(**json.loads(line)))
        except OSError:
            pass  # it has been killed
        finally:
            # It is started again, or has ended for good: whoever does that says so.
            self._writer.close()
            self._writer = None
            self._since = time.monotonic()
            if self._answer is not None:
                self._answer.cancel()

    def close(self) -> asyncio.Task[None]:
        """Ask it no more; returns what ends soon."""
        self._listening.cancel()
        return self._listening
