"""Where the world begins: the functions through which Python code does I/O, and what a workflow does instead."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ORM", "POINTS", "Point"]


class Point(NamedTuple):
    """A function that does I/O.

    Attributes:
        module: where it is.
        name: its name there; ``"Class.method"`` for a method.
        rule: the scanner's rule about it, which says what to do instead.
        does: what it does, as a verb phrase.
        shown: the argument that says with what, by position, or None.
    """

    module: str
    name: str
    rule: str
    does: str
    shown: int | None = None


ORM, DATABASE, CACHE, MAIL = "D201", "D204", "D205", "D206"
SLEEP, FILES, NETWORK, PROCESSES, THREADS = "D103", "D301", "D302", "D304", "D305"


def _points(module: str, rule: str, does: str, names: str, shown: int | None = None) -> list[Point]:
    return [Point(module, name, rule, does, shown) for name in names.split()]


#: All of them, but for the ORM's connections, which :mod:`continuum.determinism.guards` sees to. Modules that are
#: not installed, and names that a platform or version does not have, are passed over.
POINTS: tuple[Point, ...] = (
    Point("builtins", "open", FILES, "opens a file", 0),
    Point("io", "open", FILES, "opens a file", 0),
    *_points("os", FILES, "opens a file", "open", 0),
    *_points("os", FILES, "lists a directory", "listdir scandir", 0),
    *_points("os", FILES, "looks for a file", "stat lstat access", 0),
    *_points("os", FILES, "changes files", "remove unlink rename replace mkdir rmdir chmod chown truncate utime", 0),
    *_points("os", FILES, "changes files", "link symlink mkfifo mknod", 1),
    *_points("os", PROCESSES, "starts a process", "fork forkpty system posix_spawn posix_spawnp"),
    *_points("os", PROCESSES, "replaces its process", "execv execve"),
    *_points("os", PROCESSES, "sends a signal", "kill killpg"),
    *_points("signal", PROCESSES, "sends a signal", "raise_signal pthread_kill"),
    *_points("signal", PROCESSES, "sets up signals", "signal alarm setitimer siginterrupt set_wakeup_fd"),
    Point("subprocess", "Popen.__init__", PROCESSES, "starts a process"),
    Point("multiprocessing.process", "BaseProcess.start", PROCESSES, "starts a process"),
    Point("concurrent.futures.process", "ProcessPoolExecutor.submit", PROCESSES, "hands work to a process"),
    Point("concurrent.futures.thread", "ThreadPoolExecutor.submit", THREADS, "hands work to a thread"),
    Point("threading", "Thread.start", THREADS, "starts a thread"),
    *_points("_thread", THREADS, "starts a thread", "start_new_thread start_joinable_thread"),
    Point("time", "sleep", SLEEP, "sleeps, and has every other run of its worker wait"),
    Point("socket", "socket.__init__", NETWORK, "opens a socket"),
    *_points("socket", NETWORK, "connects to", "socket.connect socket.connect_ex", 1),
    *_points("socket", NETWORK, "waits for connections", "socket.bind socket.listen socket.accept"),
    *_points("socket", NETWORK, "writes to a socket", "socket.send socket.sendall socket.sendto socket.sendmsg"),
    *_points(
        "socket", NETWORK, "reads from a socket", "socket.recv socket.recv_into socket.recvfrom socket.recvfrom_into"
    ),
    *_points("socket", NETWORK, "asks for the address of", "getaddrinfo gethostbyname gethostbyname_ex", 0),
    *_points("socket", NETWORK, "asks for the name of a host", "gethostname getfqdn gethostbyaddr getnameinfo"),
    *_points("ssl", NETWORK, "writes to a socket", "SSLSocket.send SSLSocket.sendall SSLSocket.write"),
    *_points("ssl", NETWORK, "reads from a socket", "SSLSocket.recv SSLSocket.recv_into SSLSocket.read"),
    *_points("sqlite3", DATABASE, "connects to a database", "connect"),
    *_points("psycopg", DATABASE, "connects to a database", "connect Connection.connect"),
    *_points("psycopg", DATABASE, "uses a database", "Connection.wait"),
    *_points(
        "django.db.backends.utils",
        ORM,
        "uses the database",
        "CursorWrapper.execute CursorWrapper.executemany CursorWrapper.callproc",
    ),
    Point("django.core.cache", "CacheHandler.__getitem__", CACHE, "uses the cache", 1),
    Point("django.core.mail", "EmailMessage.send", MAIL, "sends mail"),
)
