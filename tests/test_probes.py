"""What a worker answers to those who want to know whether it lives, and whether it is ready."""

from __future__ import annotations

import json
import os
import signal
import socket
from http.client import HTTPConnection
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError
from django.db import connection

import continuum
from continuum.management.commands.continuum_worker import Command
from continuum.models import Worker
from continuum.worker import joint_probes
from continuum.worker.joint_probes import JointProbes
from tests.app import workflows as flows
from tests.app.models import Effect
from tests.waiting_for import eventually
from tests.workers import ProcessWorker


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, path, method="GET"):
    """Return status and body, or (None, None) if nobody answers."""
    # More patient than a parent is with its processes, of which it has to tell that one is silent.
    client = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request(method, path)
        response = client.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body else None
    except (OSError, ValueError):
        return None, None
    finally:
        client.close()


def status(port, path):
    return ask(port, path)[0]


def said_with(code, port, path, timeout):
    """Wait for an answer with this status, and return what it says: the next may say something else."""
    return eventually(lambda: (answer := ask(port, path))[0] == code and answer[1], timeout)


@pytest.fixture
def start_worker(subprocess_environment, tmp_path):
    started = []

    def start(*arguments):
        worker = ProcessWorker(subprocess_environment, *arguments, log=tmp_path / f"worker{len(started)}.log")
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close()


@pytest.mark.cluster
@pytest.mark.django_db(transaction=True)
class TestAnswers:
    def test_it_is_live_and_ready_while_it_serves_and_says_how_it_is(self, start_worker):
        port = free_port()
        start_worker("--probe", f"127.0.0.1:{port}")
        eventually(lambda: status(port, "/ready") == 200, 60)
        continuum.start(flows.listens)
        eventually(lambda: (ask(port, "/ready")[1] or {}).get("live_runs") == 1, 30)
        code, said = ask(port, "/live")
        [row] = Worker.objects.all()
        assert code == 200
        assert said["state"] == "serving"
        assert said["worker"] == row.id
        assert said["name"] == row.name
        assert 0 <= said["last_renewal_age"] < 30
        assert set(said) == {"state", "worker", "name", "live_runs", "last_renewal_age"}

    def test_other_requests_are_told_what_there_is(self, start_worker):
        port = free_port()
        start_worker("--probe", str(port))
        eventually(lambda: status(port, "/ready") == 200, 60)
        assert ask(port, "/")[0] == 404
        assert ask(port, "/live", "POST")[0] == 405
        assert ask(port, "/live", "HEAD") == (200, None)
        with socket.create_connection(("127.0.0.1", port)) as garbage:
            garbage.sendall(b"\x00" * 20_000)
        assert status(port, "/live?verbose") == 200

    def test_it_is_live_but_not_ready_while_it_drains(self, start_worker, tmp_path):
        port = free_port()
        gate = tmp_path / "gate"
        continuum.start(flows.holds, "p", str(gate))
        worker = start_worker("--probe", str(port), "--drain-timeout", "120")
        eventually(lambda: Effect.objects.filter(key="p:held").exists(), 60)
        worker.send(signal.SIGTERM)
        assert said_with(503, port, "/ready", 10)["state"] == "draining"
        assert status(port, "/live") == 200
        gate.touch()
        assert worker.wait(60) == 0
        assert ask(port, "/live") == (None, None)

    def test_without_the_database_it_is_not_ready_and_after_a_while_not_live(self, start_worker):
        port = free_port()
        start_worker("--probe", str(port), "--settings", "tests.settings_short_lease")
        eventually(lambda: status(port, "/ready") == 200, 60)
        before = ask(port, "/live")[1]["worker"]
        name = connection.settings_dict["NAME"]
        with connection._nodb_cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
            try:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = %s AND application_name LIKE 'continuum%%'",
                    [name],
                )
                assert said_with(503, port, "/ready", 60)["state"] == "cut off"
                # It may come back by itself, so it is not restarted at once; but not for ever.
                assert status(port, "/live") == 200
                eventually(lambda: status(port, "/live") == 503, 60)
            finally:
                cursor.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
        eventually(lambda: status(port, "/ready") == 200, 60)
        assert status(port, "/live") == 200
        assert ask(port, "/live")[1]["worker"] != before

    def test_a_port_that_is_taken_is_said_and_ends_the_worker(self, start_worker):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            worker = start_worker("--probe", f"127.0.0.1:{taken.getsockname()[1]}")
            assert worker.wait(60) == 1
        assert "cannot answer probes" in worker.output


def said_by_all(port):
    """Return what the parent says of each of its processes."""
    return (ask(port, "/ready")[1] or {"processes": []})["processes"]


@pytest.mark.cluster
@pytest.mark.django_db(transaction=True)
class TestSeveralProcesses:
    """One port for all of them: nobody else knows how many there are."""

    def test_are_ready_when_all_of_them_are_and_say_how_each_is(self, start_worker):
        port = free_port()
        start_worker("--probe", f"127.0.0.1:{port}", "--processes", "2")
        eventually(lambda: status(port, "/ready") == 200, 60)
        continuum.start(flows.listens)
        eventually(lambda: (ask(port, "/ready")[1] or {}).get("live_runs") == 1, 30)
        code, said = ask(port, "/live")
        assert code == 200
        assert said["state"] == "serving"
        workers = {worker.id: worker.name for worker in Worker.objects.all()}
        assert {one["worker"]: one["name"] for one in said["processes"]} == workers
        assert {one["state"] for one in said["processes"]} == {"serving"}
        assert sum(one["live_runs"] for one in said["processes"]) == 1

    def test_are_live_but_not_ready_while_one_of_them_is_started_again(self, start_worker):
        port = free_port()
        start_worker("--probe", str(port), "--processes", "2")
        assert status(port, "/live") in (None, 200)
        eventually(lambda: status(port, "/ready") == 200, 60)
        victim, *_ = Worker.objects.order_by("id")
        os.kill(victim.pid, signal.SIGKILL)
        assert said_with(503, port, "/ready", 10)["state"] == "starting"
        heard = []
        eventually(lambda: heard.append(status(port, "/live")) or status(port, "/ready") == 200, 60)
        assert set(heard) == {200}
        assert victim.id not in {one["worker"] for one in said_by_all(port)}

    def test_are_not_live_while_one_of_them_does_not_answer(self, start_worker):
        port = free_port()
        start_worker("--probe", str(port), "--processes", "2", "--settings", "tests.settings_patient")
        eventually(lambda: status(port, "/ready") == 200, 60)
        silent, *_ = Worker.objects.order_by("id")
        os.kill(silent.pid, signal.SIGSTOP)
        try:
            code, said = ask(port, "/live")
            assert code == 503
            assert said["state"] == "silent"
            assert [one["state"] for one in said["processes"]].count("serving") == 1
            assert status(port, "/ready") == 503
        finally:
            os.kill(silent.pid, signal.SIGCONT)
        eventually(lambda: (status(port, "/live"), status(port, "/ready")) == (200, 200), 10)

    def test_are_live_but_not_ready_while_they_drain(self, start_worker, tmp_path):
        port = free_port()
        gate = tmp_path / "gate"
        worker = start_worker("--probe", str(port), "--processes", "2", "--drain-timeout", "120")
        eventually(lambda: status(port, "/ready") == 200, 60)
        continuum.start(flows.holds, "p", str(gate))
        eventually(lambda: Effect.objects.filter(key="p:held").exists(), 60)
        worker.send(signal.SIGTERM)
        # The one that has nothing to do is gone soon.
        eventually(lambda: [one["state"] for one in said_by_all(port)] == ["draining"], 60)
        assert ask(port, "/ready")[0] == 503
        assert status(port, "/live") == 200
        gate.touch()
        assert worker.wait(60) == 0
        assert ask(port, "/live") == (None, None)

    def test_are_not_started_when_the_port_is_taken(self, start_worker):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            worker = start_worker("--probe", f"127.0.0.1:{taken.getsockname()[1]}", "--processes", "2")
            assert worker.wait(60) == 1
        assert worker.output.count("cannot answer probes") == 1
        assert "worker process" not in worker.output


class TestParent:
    """What the parent says of processes that say nothing."""

    @pytest.fixture
    def probes(self):
        port = free_port()
        probes = JointProbes(("127.0.0.1", port), name="parent", lease_ttl=30.0)
        probes.port = port
        yield probes
        probes.close()

    @pytest.fixture
    def wait(self, monkeypatch):
        """Let seconds go by, for the parent."""
        now = [1000.0]
        monkeypatch.setattr(joint_probes, "time", SimpleNamespace(monotonic=lambda: now[0]))

        def wait(seconds):
            now[0] += seconds

        return wait

    def test_without_a_process_it_is_not_ready(self, probes):
        assert ask(probes.port, "/ready") == (
            503,
            {"state": "starting", "name": "parent", "live_runs": 0, "processes": []},
        )
        assert status(probes.port, "/live") == 200

    def test_a_process_that_does_not_come_to_answer_is_given_up_after_three_leases(self, probes, wait):
        ours, theirs = socket.socketpair()
        with theirs:
            probes.started(1, ours)
            assert status(probes.port, "/live") == 200
            wait(89.9)
            assert status(probes.port, "/live") == 200
            wait(0.2)
            assert status(probes.port, "/live") == 503
            assert ask(probes.port, "/live")[1]["state"] == "starting"

    def test_one_that_has_ended_for_good_counts_no_more(self, probes, wait):
        ours, theirs = socket.socketpair()
        with theirs:
            probes.started(1, ours)
            assert status(probes.port, "/live") == 200
            wait(91)
            assert status(probes.port, "/live") == 503
            probes.ended(1)
            assert status(probes.port, "/live") == 200


class TestOption:
    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("8080", (None, 8080)),
            ("127.0.0.1:8080", ("127.0.0.1", 8080)),
            ("[::1]:8080", ("::1", 8080)),
            ("localhost:1", ("localhost", 1)),
        ],
    )
    def test_is_a_port_with_or_without_a_host(self, given, meant):
        parser = Command().create_parser("manage.py", "continuum_worker")
        assert parser.parse_args(["--probe", given]).probe == meant

    @pytest.mark.parametrize("given", ["", "x", "0", "65536", ":8080", "host:", "host:x", "-1"])
    def test_anything_else_is_refused(self, given):
        parser = Command().create_parser("manage.py", "continuum_worker")
        with pytest.raises(CommandError, match="is not a port, or host:port, such as 8080"):
            parser.parse_args([f"--probe={given}"])

    def test_is_in_the_help(self):
        said = StringIO()
        Command(stdout=said).create_parser("manage.py", "continuum_worker").print_help(said)
        text = " ".join(said.getvalue().split())
        assert "--probe [HOST:]PORT Answer HTTP requests for /live and /ready there" in text
