"""What may stand between a worker and PostgreSQL: a PgBouncer, and a wire that loses the answers to commits."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.conftest import url_of
from tests.waiting_for import eventually

PORT = "6432"


def pgbouncer_binary() -> str | None:
    """Return where PgBouncer is; Debian keeps it out of the path of ordinary accounts."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def through(database: dict[str, Any], directory: Path, port: str) -> dict[str, Any]:
    """Return an entry of ``DATABASES`` that reaches the same database by the socket in ``directory``."""
    options = {name: value for name, value in database["OPTIONS"].items() if name not in ("host", "port")}
    return {**database, "HOST": str(directory), "PORT": port, "OPTIONS": options}


def address_of(database: dict[str, Any]) -> tuple[str, str]:
    """Return host (or directory of the socket) and port of an entry of ``DATABASES``."""
    address = {"host": database["HOST"], "port": database["PORT"]} | database["OPTIONS"]
    return str(address["host"] or "localhost"), str(address["port"] or 5432)


class PgBouncer:
    """A PgBouncer in transaction mode before a database, as an account that may use the server's socket.

    Args:
        database: the entry of ``DATABASES`` that it leads to.
        pool_size: how many sessions all its clients share.
    """

    def __init__(self, database: dict[str, Any], *, pool_size: int = 6) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="continuum-pgbouncer-"))
        self.database = through(database, self.directory, PORT)
        self.url = url_of(self.database)
        self.log = self.directory / "log"
        host, port = address_of(database)
        password = f" password={database['PASSWORD']}" if database["PASSWORD"] else ""
        (self.directory / "ini").write_text(
            "[databases]\n"
            f"* = host={host} port={port} user={database['USER']}{password}\n"
            "[pgbouncer]\n"
            "pool_mode = transaction\n"
            f"default_pool_size = {pool_size}\n"
            "max_client_conn = 500\n"
            "auth_type = any\n"
            f"unix_socket_dir = {self.directory}\n"
            "listen_addr =\n"
            f"listen_port = {PORT}\n"
            f"logfile = {self.log}\n"
            f"pidfile = {self.directory / 'pid'}\n"
            "server_login_retry = 1\n"
        )
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = _account_of(host, port)
            account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        self.directory.chmod(0o755)
        binary = pgbouncer_binary()
        assert binary is not None
        self._process = subprocess.Popen(
            [binary, "-q", str(self.directory / "ini")],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account,
        )
        eventually(self._listens, 30, message="PgBouncer listens")

    def _listens(self) -> bool:
        # Not yet when the socket is there.
        with socket.socket(socket.AF_UNIX) as caller:
            return caller.connect_ex(str(self.directory / f".s.PGSQL.{PORT}")) == 0

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _account_of(host: str, port: str) -> pwd.struct_passwd:
    """Return the account to run as: the owner of the server's socket, which may be closed to others."""
    path = Path(host) / f".s.PGSQL.{port}"
    if path.exists() and (owner := path.stat().st_uid):
        return pwd.getpwuid(owner)
    return pwd.getpwnam("nobody")


class LossyWire:
    """A proxy on a socket of its own that now and then breaks a connection right when a commit's answer is to pass.

    What such an answer says has happened: the server has committed, and the client never learns it. Told to, it keeps
    connections and passes nothing on any more.

    Args:
        database: the entry of ``DATABASES`` that it leads to.
        every: it is one in so many answers that is lost, of each purpose; the first one always is.
        purposes: which: middle words of the connections' application names, or "django".
        seed: of the choice.
        calm: so many answers pass at the beginning of each connection, so that there is progress.

    Attributes:
        lost: how many answers were lost, by purpose.
    """

    def __init__(self, database: dict[str, Any], *, every: int, purposes: set[str], seed: int, calm: int = 2) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="continuum-wire-"))
        self.url = url_of(through(database, self.directory, PORT))
        self.every = every
        self.purposes = purposes
        self.calm = calm
        self.lost: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._address = address_of(database)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.directory / f".s.PGSQL.{PORT}"))
        self._listening.listen(200)
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._passing: dict[asyncio.Event, str] = {}
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)
        self._loop.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def stall(self, purposes: set[str]) -> set[str]:
        """Have the connections that there are for these purposes pass nothing on; returns which purposes had some."""

        async def stall() -> set[str]:
            found = {stalled: purpose for stalled, purpose in self._passing.items() if purpose in purposes}
            for stalled in found:
                stalled.set()
            return set(found.values())

        return asyncio.run_coroutine_threadsafe(stall(), self._loop).result(30)

    async def _serve(self) -> None:
        self._done = asyncio.Event()
        server = await asyncio.start_unix_server(self._accept, sock=self._listening)
        await self._done.wait()
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        host, port = self._address
        writers = [writer]
        stalled = asyncio.Event()
        try:
            if host.startswith("/"):
                from_server, to_server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}", limit=2**24)
            else:
                from_server, to_server = await asyncio.open_connection(host, int(port), limit=2**24)
            writers.append(to_server)
            purpose = await _startup(reader, writer, to_server)
            self._passing[stalled] = purpose
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_copy(reader, to_server, stalled))
                directions.create_task(self._answers(from_server, writer, purpose, stalled))
        except* (OSError, EOFError, _BrokenError):
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            for each in writers:
                each.close()
            self._connections.discard(task)
            self._passing.pop(stalled, None)

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, purpose: str, stalled: asyncio.Event
    ) -> None:
        held = bytearray()
        answers = 0
        while True:
            head = await reader.readexactly(5)
            kind, size = chr(head[0]), struct.unpack(">I", head[1:])[0]
            body = await reader.readexactly(size - 4)
            if stalled.is_set():
                continue
            held += head + body
            if kind == "Z":
                # "I": no transaction is open, so whatever there was to commit is committed.
                if body == b"I":
                    answers += 1
                    if answers > self.calm and self._loses(purpose):
                        raise _BrokenError
                writer.write(bytes(held))
                held.clear()
            elif kind in "RKSAE":  # before the first Z, and what comes unasked
                writer.write(bytes(held))
                held.clear()
            with suppress(ConnectionError):
                await writer.drain()

    def _loses(self, purpose: str) -> bool:
        if purpose not in self.purposes:
            return False
        # By chance: what is lost in step with the client's own rhythm would hit the same statement for ever.
        if purpose in self.lost and self._chance.random() * self.every >= 1:
            return False
        self.lost[purpose] += 1
        return True


class _BrokenError(Exception):
    pass


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> str:
    """Pass the first message on; return what the connection is for."""
    while True:
        (size,) = struct.unpack(">I", await reader.readexactly(4))
        body = await reader.readexactly(size - 4)
        if struct.unpack(">I", body[:4])[0] in (80877103, 80877104):  # SSL, GSS: not here
            writer.write(b"N")
            continue
        to_server.write(struct.pack(">I", size) + body)
        words = body[4:].split(b"\0")
        name = dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode().split()
        return name[1] if name[:1] == ["continuum"] and len(name) > 1 else "django"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stalled: asyncio.Event) -> None:
    while data := await reader.read(65536):
        if stalled.is_set():
            continue
        writer.write(data)
        await writer.drain()
    raise EOFError
