"""Several worker processes under one parent. The processes here are small scripts that behave as a worker would."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.waiting_for import eventually

ROOT = Path(__file__).parent.parent

PARENT = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
from continuum.worker import supervisor
from continuum.worker.connections import Backoff
supervisor.GIVING_BACK = {giving_back}

class Quick(supervisor._Child):
    __slots__ = ()
    def __init__(self, number):
        super().__init__(number, backoff=Backoff(base=0.01, cap=0.01))
supervisor._Child = Quick
{patches}
sys.exit(supervisor.Supervisor(
    [sys.executable, "-c", {child!r}], {processes}, burst={burst}, drain_timeout={drain_timeout}
).run())
"""

# Notes its start and end in files of its own, and stays until it is told to stop.
STAYS = """
import os, pathlib, signal, sys, threading
here = pathlib.Path(os.environ["NOTES"])
def stop(*_):
    (here / f"stopped-{os.getpid()}").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: (here / f"interrupted-{os.getpid()}").touch())
"""
WAITS = """
(here / f"started-{os.getpid()}").touch()
while True:
    signal.pause()
"""


class Family:
    """A supervisor in a process of its own, and what its children noted."""

    def __init__(self, notes, child, *, processes=2, burst=False, drain_timeout=5.0, giving_back=5.0, patches=""):
        self.notes = notes
        script = PARENT.format(
            child=textwrap.dedent(child),
            processes=processes,
            burst=burst,
            drain_timeout=drain_timeout,
            giving_back=giving_back,
            patches=patches,
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"NOTES": str(notes), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def noted(self, what):
        return sorted(int(path.name.partition("-")[2]) for path in self.notes.glob(f"{what}-*"))

    def started(self, count):
        return eventually(lambda: len(self.noted("started")) >= count and self.noted("started"), 30)

    def end(self):
        """Wait for the supervisor's end; returns its status and what it said."""
        try:
            _, said = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, said


@pytest.fixture
def family(tmp_path):
    families = []

    def start(child, **arguments):
        families.append(Family(tmp_path, child, **arguments))
        return families[-1]

    yield start
    for each in families:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        each.process.stderr.close()
        for pid in each.noted("started"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def gone(pids):
    return all(not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_all_processes_may_drain(family, number):
    running = family(STAYS + WAITS)
    pids = running.started(2)
    running.process.send_signal(number)
    assert running.end()[0] == 0
    assert running.noted("stopped") == pids


def test_control_c_in_a_terminal_reaches_the_processes_once_and_not_twice(family):
    running = family(STAYS + WAITS)
    pids = running.started(2)
    os.killpg(running.process.pid, signal.SIGINT)  # what a terminal does
    assert running.end()[0] == 0
    assert (running.noted("interrupted"), running.noted("stopped")) == ([], pids)


def test_a_process_that_is_killed_is_started_again(family):
    running = family(STAYS + WAITS, processes=1)
    [first] = running.started(1)
    os.kill(first, signal.SIGKILL)
    pids = running.started(2)
    running.process.terminate()
    status, said = running.end()
    assert status == 0
    assert running.noted("stopped") == [pid for pid in pids if pid != first]
    assert "ended with SIGKILL: restarting" in said


def test_a_process_that_ends_by_itself_is_started_again(family):
    running = family(STAYS + '(here / f"started-{os.getpid()}").touch()', processes=1)
    running.started(3)
    running.process.terminate()
    assert running.end()[0] == 0


def test_in_a_burst_a_process_that_is_done_is_done(family):
    running = family(STAYS + '(here / f"started-{os.getpid()}").touch()', burst=True)
    assert running.end()[0] == 0
    assert len(running.noted("started")) == 2


def test_in_a_burst_one_process_stays_until_the_others_have_ended(family):
    crashes_at_first = """
    import asyncio, time
    from continuum.worker.supervisor import OTHERS_PIPE, descriptor_of, others_ended
    (here / f"started-{os.getpid()}").touch()
    stays_for = descriptor_of(OTHERS_PIPE)
    if stays_for is not None:
        asyncio.run(others_ended(stays_for))
        assert len(list(here.glob("ended-*"))) == 2, "somebody is still there"
    else:
        (here / f"ended-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL if len(list(here.glob("ended-*"))) == 1 else 0)
    """
    running = family(STAYS + textwrap.dedent(crashes_at_first), burst=True)
    status, said = running.end()
    assert status == 0, said
    assert "somebody is still there" not in said
    assert len(running.noted("started")) == 3


def test_in_a_burst_a_process_that_crashes_is_started_again(family):
    once = """
    (here / f"started-{os.getpid()}").touch()
    if len(list(here.glob("started-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    """
    running = family(STAYS + textwrap.dedent(once), processes=1, burst=True)
    assert running.end()[0] == 0
    assert len(running.noted("started")) == 2


def test_processes_that_cannot_start_are_given_up_and_the_others_stopped(family):
    one_fails = """
    try:
        (here / "taken").touch(exist_ok=False)
    except FileExistsError:
        sys.exit(3)
    """
    running = family(STAYS + textwrap.dedent(one_fails) + WAITS)
    status, said = running.end()
    assert status == 1
    assert "failed to start 5 times in a row, the last time with status 3: giving up" in said
    assert running.noted("stopped") == running.noted("started")


def test_processes_that_are_killed_soon_after_their_start_are_started_again_and_again(family):
    killed_often = """
    (here / f"started-{os.getpid()}").touch()
    if len(list(here.glob("started-*"))) <= 6:
        os.kill(os.getpid(), signal.SIGKILL)
    """
    running = family(STAYS + textwrap.dedent(killed_often), processes=1, burst=True)
    status, said = running.end()
    assert status == 0
    assert said.count("ended with SIGKILL: restarting") == 6


def test_a_second_signal_kills_at_once(family):
    stubborn = STAYS.replace("os._exit(0)", "pass") + WAITS
    running = family(stubborn, drain_timeout=300.0)
    pids = running.started(2)
    running.process.terminate()
    eventually(lambda: len(running.noted("stopped")) == 2)
    running.process.send_signal(signal.SIGINT)
    status, said = running.end()
    assert status == 128 + signal.SIGINT
    assert gone(pids)
    assert "second SIGINT" in said


def test_what_does_not_end_within_the_deadline_is_killed(family):
    stubborn = STAYS.replace("os._exit(0)", "pass") + WAITS
    running = family(stubborn, drain_timeout=0.2, giving_back=0.1)
    pids = running.started(2)
    running.process.terminate()
    status, _ = running.end()
    assert status == 128 + signal.SIGTERM
    assert gone(pids)


def test_a_failure_while_draining_shows_in_the_status(family):
    running = family(STAYS.replace("os._exit(0)", "os._exit(1)") + WAITS)
    running.started(2)
    running.process.terminate()
    assert running.end()[0] == 1


def test_processes_drain_when_the_parent_is_killed(family):
    watches = """
    from continuum.worker.supervisor import end_with_parent
    assert end_with_parent()
    assert not end_with_parent(), "the pipe is nobody else's business"
    """
    running = family(STAYS + textwrap.dedent(watches) + WAITS)
    pids = running.started(2)
    running.process.kill()
    eventually(lambda: running.noted("stopped") == pids)


def test_without_a_parent_there_is_nothing_to_watch(monkeypatch):
    from continuum.worker.supervisor import PARENT_PIPE, end_with_parent

    monkeypatch.delenv(PARENT_PIPE, raising=False)
    assert end_with_parent() is False
