"""Heartbeats: what they say is durable, reaches the next attempt, and brings the news that an attempt is not wanted."""

from __future__ import annotations

import asyncio
import threading
import time
from uuid import uuid4

import pytest

import continuum
from continuum import ActivityCancelledError, DurableValueError, NotInActivityError, activity_info, heartbeat
from continuum.models import ActivityTask
from continuum.worker import heartbeats
from continuum.worker.heartbeats import Heartbeats
from tests.app import attempt_workflows as flows
from tests.app.models import Effect
from tests.test_activities import attempt_of, executor, later, results_of  # noqa: F401
from tests.test_cluster import start_worker  # noqa: F401
from tests.waiting_for import eventually, eventually_async, sessions_of
from tests.workers import worker


def state_of(run):
    return continuum.get_run(run).state


def marks(key):
    return Effect.objects.filter(key=key).count()


def rows_of(run):
    return list(ActivityTask.objects.filter(run_id=run.id).values_list("command_id", "state", "heartbeat_details"))


class TestCalling:
    def test_outside_an_activity_it_says_so(self):
        with pytest.raises(NotInActivityError, match=r"my_activity\.call"):
            heartbeat()

    def test_details_that_are_too_large_are_refused_where_they_are_given(self):
        def beats():
            heartbeat("x" * (16 * 1024 - 2))
            with pytest.raises(DurableValueError, match=r"^details: .*16,384 bytes"):
                heartbeat("x" * (16 * 1024))

        [result] = results_of(attempt_of(beats))
        assert result.ok, result.error

    def test_details_that_are_not_durable_are_refused_with_their_path(self):
        def beats():
            with pytest.raises(DurableValueError, match=r"^details\['rows'\]|^details\.rows"):
                heartbeat({"rows": [print]})

        [result] = results_of(attempt_of(beats))
        assert result.ok, result.error

    def test_async_activities_and_their_threads_can_beat(self):
        async def beats():
            heartbeat(1)
            await asyncio.to_thread(heartbeat, 2)
            await asyncio.create_task(asyncio.sleep(0))

        [result] = results_of(attempt_of(beats))
        assert result.ok, result.error
        assert result.attempt.details_json == "2"

    def test_a_plain_thread_of_an_activity_is_no_part_of_it(self):
        def beats():
            seen = []

            def other():
                try:
                    heartbeat()
                except NotInActivityError:
                    seen.append("none")

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return seen

        [result] = results_of(attempt_of(beats))
        assert result.value_json == '["none"]'

    def test_thousands_of_calls_a_second_are_noted_once(self):
        noted = []

        def beats():
            began = time.thread_time()
            for n in range(10_000):
                heartbeat({"row": n})
            return time.thread_time() - began

        [result] = results_of(attempt_of(beats), on_beat=noted.append)
        assert [attempt.details_json for attempt in noted] == ['{"row":9999}']
        assert float(result.value_json) < 2

    def test_an_attempt_that_was_abandoned_is_told(self):
        told, going = threading.Event(), threading.Event()

        def beats():
            try:
                while True:
                    heartbeat()
                    going.set()
            except ActivityCancelledError:
                told.set()
                raise

        async def scenario():
            async with executor() as (running, reported):
                attempt = attempt_of(beats)
                running.submit(attempt)
                await eventually_async(going.is_set)
                running.abandon(attempt)
                await eventually_async(told.is_set)
                assert not reported

        asyncio.run(scenario())

    def test_an_attempt_that_timed_out_is_told(self):
        told = threading.Event()

        def beats():
            try:
                while True:
                    time.sleep(0.005)
                    heartbeat()
            except ActivityCancelledError:
                told.set()

        [result] = results_of(attempt_of(beats, timeout=0.05))
        assert result.error["type"] == "ActivityTimeoutError"
        assert "did not finish within 0.05 seconds" in result.error["message"]
        assert told.wait(30)


class TestSilence:
    @pytest.mark.parametrize("kind", ["def", "async def"])
    def test_an_attempt_without_heartbeats_times_out(self, kind):
        over = threading.Event()

        def plain():
            over.wait(60)

        async def awaited():
            await asyncio.sleep(60)

        attempt = attempt_of(plain if kind == "def" else awaited, timeout=120)
        attempt.heartbeat_timeout = 0.1
        [result] = results_of(attempt)
        over.set()
        assert result.error["type"] == "ActivityTimeoutError"
        assert "sent no heartbeat for 0.1 seconds" in result.error["message"]

    def test_heartbeats_keep_it_going_but_not_beyond_its_timeout(self, later):  # noqa: F811
        goes_on = threading.Semaphore(0)

        def beats():
            while goes_on.acquire(timeout=30):
                heartbeat()

        async def scenario():
            async with executor() as (running, reported):
                attempt = attempt_of(beats, timeout=6000)
                attempt.heartbeat_timeout = 2000
                running.submit(attempt)
                await eventually_async(lambda: attempt.started)
                for _ in range(3):
                    later(1900, running, attempt)
                    assert reported == []
                    beaten = attempt.beaten
                    goes_on.release()
                    await eventually_async(lambda beaten=beaten: attempt.beaten > beaten)
                later(400, running, attempt)
                goes_on.release()
                return [result.error["message"] for result in reported]

        [message] = asyncio.run(scenario())
        assert "did not finish within 6000 seconds" in message

    def test_time_in_line_is_no_silence(self, later):  # noqa: F811
        release = threading.Event()

        def holds():
            release.wait(30)

        def waits():
            return "in time"

        async def scenario():
            async with executor(threads=1) as (running, reported):
                second = attempt_of(waits)
                second.heartbeat_timeout = 60
                running.submit(attempt_of(holds))
                running.submit(second)
                later(3600, running, second)
                release.set()
                await eventually_async(lambda: len(reported) == 2)
                return [result.ok for result in reported]

        assert asyncio.run(scenario()) == [True, True]


@pytest.mark.django_db(transaction=True)
class TestDurability:
    def test_the_details_reach_the_next_attempt_as_the_values_they_were(self):
        with worker():
            run = continuum.start(flows.goes_on_from_heartbeats, 3)
            assert continuum.result(run, timeout=10) == [3, 2, 1.0]
        assert rows_of(run) == []

    def test_the_first_heartbeat_is_durable_at_once(self, monkeypatch, tmp_path):
        monkeypatch.setattr(heartbeats, "PAUSE", 3600.0)
        with worker():
            run = continuum.start(flows.beats, "b", str(tmp_path / "gate"))
            [(command_id, state, details)] = eventually(lambda: rows_of(run))
            assert (command_id, state, details["n"] >= 0) == ("0:1", "local", True)
            (tmp_path / "gate").touch()
            assert continuum.result(run, timeout=10) is None

    def test_later_ones_are_in_a_while_and_the_row_goes_with_the_result(self, tmp_path):
        with worker():
            run = continuum.start(flows.beats, "b", str(tmp_path / "gate"))
            [(_, _, details)] = eventually(lambda: rows_of(run))
            eventually(lambda: rows_of(run)[0][2]["n"] > details["n"], message="newer details")
            (tmp_path / "gate").touch()
            assert continuum.result(run, timeout=10) is None
        assert rows_of(run) == []

    def test_activities_that_do_not_beat_have_no_row_and_no_write(self, monkeypatch):
        written = []
        monkeypatch.setattr(Heartbeats, "_write", lambda self, connection, batch: written.append(batch))
        from tests.app import workflows

        with worker():
            assert continuum.result(continuum.start(workflows.five_steps, 0), timeout=10) == 5
        assert ActivityTask.objects.count() == 0
        assert written == []

    def test_writes_are_bounded_however_often_activities_beat(self, monkeypatch, tmp_path):
        write = Heartbeats._write
        batches, moments = [], []

        async def counted(self, connection, batch):
            moments.append(time.monotonic())
            batches.append(len(batch))
            await write(self, connection, batch)

        monkeypatch.setattr(Heartbeats, "_write", counted)
        with worker():
            runs = [continuum.start(flows.beats, f"w{n}", str(tmp_path / "gate")) for n in range(4)]
            eventually(lambda: len(batches) >= 4 and max(batches) == 4)
            (tmp_path / "gate").touch()
            for run in runs:
                continuum.result(run, timeout=10)
        assert moments[3] - moments[0] >= 1.4

    def test_a_row_written_while_its_command_ended_does_not_stay(self, monkeypatch, tmp_path):
        """The commit that would delete it comes while the heartbeat is being written."""
        write = Heartbeats._write

        async def slow(self, connection, batch):
            (tmp_path / "gate").touch()
            await eventually_async(lambda: ended(batch[0][0]))
            await write(self, connection, batch)

        def ended(attempt):
            live, command = attempt.key
            return command.answered and not live.unacknowledged

        monkeypatch.setattr(Heartbeats, "_write", slow)
        with worker():
            run = continuum.start(flows.beats, "r", str(tmp_path / "gate"))
            continuum.result(run, timeout=10)
        assert rows_of(run) == []

    def test_a_worker_that_leaves_hands_the_details_on(self):
        with worker(drain_timeout=0.2):
            run = continuum.start(flows.beats_fails_and_rests)
            eventually(lambda: continuum.get_run(run).waiting_on and rows_of(run))
        assert rows_of(run) == [("0:1", "local", "first")]
        assert state_of(run) == "suspended"

    def test_two_runs_do_not_see_each_others_details(self, tmp_path):
        (tmp_path / "gate").touch()
        with worker():
            first, second = (continuum.start(flows.goes_on_from_heartbeats, 2) for _ in range(2))
            assert continuum.result(first, timeout=10) == continuum.result(second, timeout=10) == [2, 1, 0.0]


@pytest.mark.django_db(transaction=True)
class TestBeingStopped:
    def test_cancelling_a_run_stops_what_beats(self, tmp_path):
        with worker():
            run = continuum.start(flows.beats_both, "c", str(tmp_path))
            eventually(lambda: len(rows_of(run)) == 2)
            continuum.cancel(run)
            continuum.wait_run(run, timeout=10)
            assert state_of(run) == "cancelled"
            for name, word in (("def", "stopped"), ("async", "cancelled")):
                path = tmp_path / name
                eventually(lambda path=path, word=word: path.exists() and path.read_text() == word)
        assert rows_of(run) == []

    @pytest.mark.parametrize("flow", [flows.stops_listening, flows.stops_listening_by_queue], ids=["local", "queued"])
    def test_an_await_that_is_given_up_stops_what_beats_and_deletes_its_row(self, tmp_path, flow):
        with worker():
            run = continuum.start(flow, "s", str(tmp_path / "told"))
            eventually(lambda: rows_of(run) and marks("s"))
            continuum.signal(run, "enough")
            eventually(lambda: (tmp_path / "told").exists())
            eventually(lambda: rows_of(run) == [])
            continuum.signal(run, "go", "on")
            assert continuum.result(run, timeout=10) == "on"

    def test_silence_is_told_from_other_timeouts(self, tmp_path):
        with worker():
            run = continuum.start(flows.notices_silence, str(tmp_path / "told"))
            told = continuum.result(run, timeout=15)
            eventually(lambda: (tmp_path / "told").exists())
        assert told[0::2] == ["ActivityTimeoutError"] * 2
        assert all("sent no heartbeat for 0.3 seconds" in message for message in told[1::2])


@pytest.mark.django_db(transaction=True)
@pytest.mark.cluster
class TestKill:
    @pytest.mark.parametrize("flow", [flows.beats, flows.beats_by_queue], ids=["local", "queued"])
    def test_the_details_survive_their_worker(self, start_worker, tmp_path, flow):  # noqa: F811
        run = continuum.start(flow, "k", str(tmp_path / "gate"))
        first = start_worker()
        eventually(lambda: rows_of(run) and (rows_of(run)[0][2] or {"n": 0})["n"] > 20, 30)
        first.kill()
        # The server may still be at what the worker sent last.
        eventually(lambda: not sessions_of("continuum attempts%"))
        [(_, _, details)] = rows_of(run)
        (tmp_path / "gate").touch()
        start_worker()
        assert continuum.result(run, timeout=30) == details
        assert rows_of(run) == []


def test_what_an_attempt_knows_is_its_own():
    def tells():
        info = activity_info()
        return [info.heartbeat_details, info.idempotency_key]

    attempt = attempt_of(tells)
    attempt.heartbeat_details, attempt.idempotency_key = {"at": 7}, f"key-{uuid4()}"
    [result] = results_of(attempt)
    assert attempt.idempotency_key in result.value_json
    assert '{"at":7}' in result.value_json
