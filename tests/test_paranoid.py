"""Paranoid mode in a worker: with a process of another hash seed beside it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

import continuum
from continuum.core.execution import Execution
from continuum.determinism import paranoid, twin, twin_process
from continuum.determinism.twin import Twin
from tests.app import unrepeatable_workflows as flows, workflows
from tests.core.driver import EPOCH_US, Driver
from tests.mending import mend
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker


@pytest.fixture
def paranoia(monkeypatch):
    monkeypatch.setenv("CONTINUUM_PARANOID", "1")


@pytest.fixture(scope="module")
def other():
    """A process with a hash seed of its own."""
    process = Twin(seed=1 if os.environ.get("PYTHONHASHSEED") != "1" else 2)
    assert process.start()
    yield process
    process.close()


class TestSwitch:
    @pytest.mark.parametrize(
        ("environment", "setting", "expected"),
        [(None, True, True), (None, False, False), ("1", False, True), ("true", False, True), ("0", True, False)],
    )
    def test_the_environment_goes_before_the_setting(self, monkeypatch, environment, setting, expected):
        monkeypatch.delenv("CONTINUUM_PARANOID", raising=False)
        if environment is not None:
            monkeypatch.setenv("CONTINUUM_PARANOID", environment)
        with override_settings(CONTINUUM={"PARANOID": setting}):
            assert paranoid.enabled() is expected

    def test_anything_else_is_refused(self, monkeypatch):
        monkeypatch.setenv("CONTINUUM_PARANOID", "perhaps")
        with pytest.raises(ImproperlyConfigured, match="perhaps"):
            paranoid.enabled()

    @pytest.mark.django_db(transaction=True)
    def test_off_no_run_is_replayed_and_no_process_started(self, monkeypatch):
        monkeypatch.delenv("CONTINUUM_PARANOID", raising=False)
        made = []
        monkeypatch.setattr(twin, "shared", lambda: made.append(1))
        monkeypatch.setattr(paranoid.Shadow, "__init__", lambda *args, **kwargs: made.append(1))
        continuum.start(workflows.five_steps, 1)
        with worker() as running:
            assert running.node.session.engine.new_execution is Execution
            eventually(lambda: running.node.engine.finished == 1)
        assert made == []


def request_of(driver):
    definition = driver.definition
    return json.loads(json.dumps(paranoid.request(definition, driver.run, driver.input, EPOCH_US, driver.history)))


class TestTwin:
    def test_arrives_where_the_run_is(self, other):
        run = Driver(workflows.collects, (2,)).open().signal("item", {"a": 1}).go()
        seed, answer = other.ask(request_of(run))
        assert (seed, answer) == (other.seed, json.loads(json.dumps(paranoid.standing(run.execution))))
        run.signal("item", 2).go()
        _, answer = other.ask(request_of(run))
        assert answer["outcome"] == ["completed", run.outcome.result, None, None]

    @pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="nothing tells the environment of a process")
    def test_has_the_hash_seed_that_it_names(self, other):
        environment = Path(f"/proc/{other.process.pid}/environ").read_bytes().split(b"\0")
        assert f"PYTHONHASHSEED={other.seed}".encode() in environment

    def test_finds_the_order_of_a_set(self, other):
        run = Driver(flows.says_in_the_order_of_a_set).open().go()
        _, answer = other.ask(request_of(run))
        assert answer["parted"][0].startswith("0:")
        run = Driver(flows.says_in_order).open().go()
        _, answer = other.ask(request_of(run))
        assert answer["outcome"][0] == "completed"

    def test_knows_nothing_of_workflows_it_has_not_loaded_or_has_loaded_otherwise(self, other):
        request = request_of(Driver(workflows.five_steps, (1,)).open().go())
        for workflow in (["nobody.has.this", 1, "0"], [request["workflow"][0], 1, "other code"]):
            assert other.ask({**request, "workflow": workflow}) == (other.seed, {})

    def test_is_not_sent_what_is_too_long(self, other, monkeypatch):
        monkeypatch.setattr(twin, "MOST_BYTES", 100)
        assert other.ask(request_of(Driver(workflows.five_steps, (1,)).open().go())) is None

    def test_one_that_died_is_replaced_after_a_while(self, monkeypatch):
        request = request_of(Driver(workflows.five_steps, (1,)).open().go())
        process = Twin()
        process.start()
        try:
            process.process.kill()
            assert process.ask(request) is None
            assert process.ask(request) is None  # not at once
            assert process.process is None
            monkeypatch.setattr(twin, "PAUSE", 0.0)
            eventually(lambda: process.ask(request), 60)
        finally:
            process.close()

    def test_one_that_died_is_replaced_once_and_not_after_all_is_over(self, monkeypatch):
        monkeypatch.setattr(twin, "PAUSE", 0.0)
        before, process, started = threading.enumerate(), Twin(), []
        start = process._start
        monkeypatch.setattr(process, "_start", lambda: started.append(1) or start())
        try:
            process.start()
            process.process.kill()
            assert process.ask({}) is None
            with process._lock:
                for _ in range(3):
                    process._replace()
            self.all_ended(before)
            assert len(started) == 2
            process.process.kill()
            assert process.ask({}) is None
            with process._lock:
                process._replace()
                process._gone_at = 0.0  # as close() says
            self.all_ended(before)
            assert len(started) == 2
        finally:
            process.close()

    @staticmethod
    def all_ended(before):
        for thread in threading.enumerate():
            if thread not in before and thread.name == "continuum-twin":
                thread.join(60)
                assert not thread.is_alive()

    def test_one_that_does_not_answer_is_ended(self, monkeypatch):
        monkeypatch.setattr(twin, "ANSWER_TIMEOUT", 0.5)
        process = Twin()
        process.start()
        try:
            pid = process.process.pid
            request = request_of(Driver(workflows.five_steps, (1,)).open().go())
            os.kill(pid, 19)
            assert process.ask(request) is None
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        finally:
            process.close()

    def test_ends_when_its_worker_is_gone(self):
        process = Twin()
        process.start()
        process._socket.close()
        process._answers.close()
        process.process.wait(60)  # an interpreter takes its time to end, too
        process._socket = None
        process.close()

    def test_without_a_settings_module_there_is_none(self, monkeypatch):
        monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
        assert not Twin().start()

    def test_the_other_end_answers_with_nothing_when_it_fails_itself(self, monkeypatch, caplog):
        monkeypatch.setattr(paranoid, "live_through", lambda *args: 1 / 0)
        assert twin_process.answer(request_of(Driver(workflows.five_steps, (1,)).open().go())) == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("paranoia")
class TestWorker:
    def test_a_mixed_load_comes_to_the_same_end(self):
        runs = [
            continuum.start(workflows.five_steps, 1),
            continuum.start(workflows.fan_out, 20),
            continuum.start(workflows.tries, "t"),
            continuum.start(workflows.naps, 0.05),
            continuum.start(workflows.fails),
            continuum.start(workflows.listens),
            continuum.start(workflows.everything, "e"),
            continuum.start(flows.says_in_order),
        ]
        continuum.signal(runs[5], "go", "heard")
        continuum.signal(runs[6], "answer", 42)
        with worker():
            for run in runs:
                continuum.wait_run(run, timeout=30)
        states = [continuum.get_run(run).state for run in runs]
        assert states == ["completed"] * 4 + ["failed"] + ["completed"] * 3
        assert [continuum.result(runs[n], timeout=20) for n in (0, 1, 2, 3, 5)] == [6, 210, 3, "late", "heard"]
        assert continuum.result(runs[7], timeout=20) == sorted(flows.WORDS)

    def test_a_run_that_cannot_be_repeated_is_parked_before_the_step_has_any_effect_until_it_is_mended(
        self, monkeypatch
    ):
        monkeypatch.setattr(twin, "shared", lambda: SimpleNamespace(ask=lambda request: None))
        run, other = continuum.start(flows.asks_by_lot), continuum.start(workflows.five_steps, 0)
        run_until_idle()
        parked = continuum.get_run(run)
        assert (parked.state, parked.error["type"]) == ("stuck_unknown_version", "NonDeterminismError")
        assert "command 0:2" in parked.error["message"]
        assert "randomness" in parked.error["message"]
        assert [event.name for event in parked.history()] == []
        assert continuum.result(other, timeout=20) == 5
        mend(monkeypatch, flows.asks_by_lot, flows.asks_as_before)
        continuum.signal(run, "go", "!")
        run_until_idle()
        assert continuum.result(run, timeout=20) == "mended!"

    def test_the_order_of_a_set_is_found_in_another_process(self):
        run = continuum.start(flows.says_all_of_a_set)
        run_until_idle()
        continuum.signal(run, "go")
        run_until_idle()
        parked = continuum.get_run(run)
        assert parked.state == "stuck_unknown_version"
        assert "PYTHONHASHSEED=" in parked.error["message"]
        assert "use sorted()" in parked.error["message"]
        assert [event.type for event in parked.history()] == []

    def test_signals_that_led_there_are_not_lost(self, monkeypatch):
        run = continuum.start(flows.says_all_of_a_set)
        continuum.signal(run, "go")
        run_until_idle()
        assert continuum.get_run(run).state == "stuck_unknown_version"
        monkeypatch.setenv("CONTINUUM_PARANOID", "0")
        run_until_idle()
        assert continuum.get_run(run).state == "completed"
