"""Signals for metrics and alerts: what is told, when, and that nobody is held up by who listens."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from django.dispatch import Signal

import continuum
from continuum import telemetry
from continuum.models import Run, Worker
from tests.app.workflows import echo, fails, five_steps, tries
from tests.waiting_for import eventually


@pytest.fixture
def heard():
    """Everything that is told, as pairs of the signal's name and its facts."""
    heard, receivers = [], []
    for name, signal in telemetry.SIGNALS.items():

        def receive(sender, signal, told=name, **facts):
            heard.append((told, facts))

        receivers.append((signal, receive))
        signal.connect(receive)
    yield heard
    telemetry.flush(10)
    for signal, receive in receivers:
        signal.disconnect(receive)


def of(heard, name, **wanted):
    return [facts for told, facts in heard if told == name and wanted.items() <= facts.items()]


@contextmanager
def listening(signal, receive):
    signal.connect(receive, weak=False)
    try:
        yield
    finally:
        telemetry.flush(10)
        signal.disconnect(receive)


@pytest.mark.django_db(transaction=True)
class TestWorker:
    def test_tells_what_becomes_of_a_run(self, heard, continuum_worker):
        run = continuum.start(five_steps, 1)
        continuum_worker.run_until_idle()
        assert telemetry.flush(10)
        (claimed,) = of(heard, "run_claimed")
        worker = Worker.objects.get()
        assert claimed | {"worker_id": worker.id} == {
            "run_id": run.id,
            "workflow": run.workflow,
            "namespace": "default",
            "worker_id": worker.id,
            "is_new": True,
        }
        activities = of(heard, "activity_ended", run_id=run.id)
        assert [(facts["outcome"], facts["attempt"], facts["error"]) for facts in activities] == [
            ("completed", 1, "")
        ] * 5
        (ended,) = of(heard, "run_ended")
        assert (ended["run_id"], ended["state"], ended["error"]) == (run.id, "completed", "")
        assert ended["seconds"] >= 0
        names = [name for name, _ in heard]
        assert names[0] == "worker_started"
        assert names[-1] == "worker_stopped"
        assert heard[-1][1]["runs_ended"] == 1

    def test_tells_of_failures_and_of_attempts_that_are_repeated(self, heard, continuum_worker):
        failed, tried = continuum.start(fails), continuum.start(tries, "k")
        continuum_worker.run_until_idle()
        assert telemetry.flush(10)
        assert of(heard, "run_ended", run_id=failed.id)[0]["error"] == "ActivityError"
        assert of(heard, "activity_ended", run_id=failed.id)[0]["error"] == "LookupError"
        outcomes = [facts["outcome"] for facts in of(heard, "activity_ended", run_id=tried.id)]
        assert outcomes[-1] == "completed"
        assert set(outcomes[:-1]) == {"retried"}

    def test_tells_once_it_is_committed(self, continuum_worker):
        states = []

        def look(sender, run_id, **facts):
            states.append(Run.objects.get(pk=run_id).state)

        with listening(telemetry.run_ended, look):
            continuum.start(echo, 1)
            continuum_worker.run_until_idle()
        assert states == ["completed"]

    def test_a_receiver_that_hangs_or_raises_holds_up_no_run(self, continuum_worker, caplog):
        let_go = threading.Event()

        def hang(sender, **facts):
            assert let_go.wait(30)
            raise RuntimeError("no metrics today")

        with listening(telemetry.activity_ended, hang):
            try:
                run = continuum.start(five_steps, 1)
                continuum_worker.start()
                assert continuum.wait_run(run, 20).state == "completed"
            finally:
                let_go.set()
        assert "no metrics today" in caplog.text


class TestEmitting:
    def test_nobody_who_listens_costs_nothing(self, monkeypatch):
        monkeypatch.setattr(telemetry._teller, "add", pytest.fail)
        telemetry.emit(Signal(), worker_id=1)

    def test_what_waits_has_a_bound_and_the_newest_is_kept(self, monkeypatch, caplog):
        monkeypatch.setattr(telemetry, "MOST_WAITING", 5)
        signal, let_go, seen = Signal(), threading.Event(), []

        def receive(sender, number, **facts):
            seen.append(number)
            if number == 0:
                assert let_go.wait(30)

        with listening(signal, receive):
            telemetry.emit(signal, number=0)
            eventually(lambda: seen == [0])
            for number in range(1, 21):
                telemetry.emit(signal, number=number)
            let_go.set()
        assert seen == [0, 16, 17, 18, 19, 20]
        assert "15 signals were dropped" in caplog.text

    def test_every_signal_is_on_the_page_with_its_arguments(self):
        from tests.pages import ROOT

        text = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
        assert [name for name in telemetry.SIGNALS if f"`{name}`" not in text] == []
