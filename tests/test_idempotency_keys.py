"""Idempotency keys: of each activity and key there is one result, whichever run asks, and however many ask at once."""

from __future__ import annotations

import asyncio
import signal

import pytest
from django.db import connection, transaction

import continuum
from continuum.models import ActivityResult, Run
from continuum.worker.connections import connect
from continuum.worker.keys import KeyRequest, Keys, KeyState, key_id, write_outcomes
from continuum.worker.links import Link
from continuum.worker.outbox import KeyOutcome
from tests.app import attempt_workflows as flows, workflows
from tests.app.models import Effect
from tests.factories import RunFactory
from tests.test_cluster import assert_sound, start_worker  # noqa: F401
from tests.waiting_for import eventually, eventually_async
from tests.workers import worker

pytestmark = pytest.mark.django_db(transaction=True)


def marks(prefix=""):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


def keys():
    return list(ActivityResult.objects.filter(kind="activity_key").values_list("idempotency_key", "result"))


def waits(run):
    """The run waits for somebody else's result: it is quiet, its activity has not begun."""
    row = continuum.get_run(run)
    return row.state == "suspended" and [entry["kind"] for entry in row.waiting_on] == ["activity"]


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


class TestRuns:
    def test_a_result_is_returned_without_running_the_body_again(self, gate):
        gate.touch()
        with worker():
            first = continuum.start(flows.pays, "k", str(gate))
            receipt = continuum.result(first, timeout=10)
            second = continuum.start(flows.pays, "k", str(gate))
            assert continuum.result(second, timeout=10) == receipt == f"receipt {first.id} k"
        assert marks() == ["k"]
        assert keys() == [("k", {"value": receipt})]

    def test_none_is_a_result(self):
        with worker():
            for _ in range(2):
                assert continuum.result(continuum.start(flows.pays_nothing, "k"), timeout=10) is None
        assert marks() == ["k"]

    def test_keys_are_each_activitys_own_and_those_of_starts_are_others(self, gate):
        gate.touch()
        with worker():
            run = continuum.start(flows.pays, "k", str(gate), idempotency_key="k")
            continuum.result(run, timeout=10)
            continuum.result(continuum.start(flows.pays_nothing, "k"), timeout=10)
        assert marks() == ["k", "k"]
        assert ActivityResult.objects.filter(kind="start_key").get().result == str(run.id)

    def test_a_call_can_bring_its_own_key(self):
        with worker():
            one, two = (continuum.start(flows.pays_with_own_key, "k") for _ in range(2))
            assert continuum.result(one, timeout=10) == continuum.result(two, timeout=10)
        assert marks() == ["k"]
        assert [key for key, _ in keys()] == ["own:k"]

    def test_two_runs_that_ask_at_once_share_one_execution(self, gate):
        with worker():
            runs = [continuum.start(flows.pays, "k", str(gate)) for _ in range(2)]
            eventually(lambda: marks() == ["k"])
            eventually(lambda: sum(map(waits, runs)) == 1)
            gate.touch()
            assert len({continuum.result(run, timeout=10) for run in runs}) == 1
        assert marks() == ["k"]

    def test_two_commands_of_one_run_share_one_execution(self, gate):
        gate.touch()
        with worker():
            run = continuum.start(flows.pays_twice, "k", str(gate))
            one, two = continuum.result(run, timeout=10)
        assert one == two
        assert marks() == ["k"]

    def test_those_who_wait_are_told_at_once_by_their_own_worker(self, gate, monkeypatch):
        from continuum.worker import key_waits

        monkeypatch.setattr(key_waits, "FIRST_PAUSE", 600)
        monkeypatch.setattr(key_waits, "LONGEST_PAUSE", 600)
        with worker():
            runs = [continuum.start(flows.pays, "k", str(gate)) for _ in range(5)]
            eventually(lambda: sum(map(waits, runs)) == 4)
            gate.touch()
            assert len({continuum.result(run, timeout=10) for run in runs}) == 1

    def test_a_crowd_that_waits_does_not_keep_out_the_run_it_waits_for(self, gate):
        """More runs than may make progress at once, and the holder's is to be taken up again last of all."""
        holder = continuum.start(flows.pays, "k", str(gate))
        with worker(drain_timeout=0.1):
            eventually(lambda: marks() == ["k"])
        assert Run.objects.get(id=holder.id).state == "suspended"
        Run.objects.filter(id=holder.id).update(priority=-1)
        runs = [continuum.start(flows.pays, "k", str(gate)) for _ in range(12)]
        gate.touch()
        with worker(concurrency=4):
            receipt = continuum.result(holder, timeout=20)
            assert {continuum.result(run, timeout=20) for run in runs} == {receipt}
        assert marks() == ["k", "k"]  # the holder's body alone, once in each life of its worker

    def test_a_failure_for_good_frees_the_key_for_those_who_wait(self, gate):
        with worker():
            first = continuum.start(flows.pays_if, "k", str(gate), False)
            eventually(lambda: marks() == ["k:False"])
            second = continuum.start(flows.pays_if, "k", str(gate), True)
            eventually(lambda: waits(second))
            gate.touch()
            assert continuum.result(first, timeout=10) == "no cover"
            assert continuum.result(second, timeout=10) == "paid"
        assert marks() == ["k:False", "k:True"]
        assert keys() == [("k", {"value": "paid"})]

    @pytest.mark.parametrize("how", ["cancelled", "not wanted any more"])
    def test_a_holder_that_gives_up_frees_the_key(self, gate, how):
        with worker():
            holder = continuum.start(flows.pays_while_wanted if how != "cancelled" else flows.pays, "k", str(gate))
            eventually(lambda: marks() == ["k"])
            second = continuum.start(flows.pays, "k", str(gate))
            eventually(lambda: waits(second))
            if how == "cancelled":
                continuum.cancel(holder)
            else:
                continuum.signal(holder, "enough")
            eventually(lambda: marks() == ["k", "k"])
            gate.touch()
            assert continuum.result(second, timeout=10) == f"receipt {second.id} k"
            if how != "cancelled":
                eventually(lambda: continuum.get_run(holder).state == "suspended")

    def test_one_that_waits_and_is_cancelled_leaves_the_key_alone(self, gate):
        with worker() as running:
            first = continuum.start(flows.pays, "k", str(gate))
            eventually(lambda: marks() == ["k"])
            second = continuum.start(flows.pays, "k", str(gate))
            eventually(lambda: waits(second))
            continuum.cancel(second)
            assert continuum.wait_run(second, timeout=10).state == "cancelled"
            assert keys() == [("k", {"holder": [str(first.id), "0:1"]})]
            gate.touch()
            assert continuum.result(first, timeout=10) == f"receipt {first.id} k"
            assert running.node.engine.attempts.key_waits._waits == {}

    def test_a_transactional_activity_takes_effect_once_for_all_who_ask(self, gate):
        with worker():
            runs = [continuum.start(flows.pays_once, "k", str(gate)) for _ in range(3)]
            eventually(lambda: sum(map(waits, runs)) == 2)
            gate.touch()
            assert len({continuum.result(run, timeout=10) for run in runs}) == 1
        assert marks() == ["k"]

    def test_a_transaction_records_its_key_even_if_its_run_never_hears_of_it(self, monkeypatch):
        from continuum.worker.attempts import Attempts
        from continuum.worker.queued import Queued

        monkeypatch.setattr(Attempts, "on_results", lambda self, results: None)
        monkeypatch.setattr(Queued, "on_message", lambda self, live, message: None)
        with worker(drain_timeout=0.1):
            first = continuum.start(flows.pays_once, "k")
            eventually(lambda: marks() == ["k"])
            continuum.cancel(first)
            assert continuum.wait_run(first, timeout=10).state == "cancelled"
        monkeypatch.undo()
        with worker():
            assert continuum.result(continuum.start(flows.pays_once, "k"), timeout=10) == f"receipt {first.id}"
        assert marks() == ["k"]

    def test_keys_hold_across_queues(self, gate):
        with worker():
            runs = [continuum.start(flow, "k", str(gate)) for flow in (flows.pays_by_queue, flows.pays) * 2]
            eventually(lambda: marks() == ["k"])
            gate.touch()
            assert len({continuum.result(run, timeout=20) for run in runs}) == 1
        assert marks() == ["k"]

    def test_a_holder_in_a_queue_that_is_not_wanted_any_more_frees_the_key(self, gate):
        with worker():
            holder = continuum.start(flows.pays_by_queue, "k", str(gate))
            eventually(lambda: marks() == ["k"])
            second = continuum.start(flows.pays, "k", str(gate))
            eventually(lambda: waits(second))
            continuum.cancel(holder)
            eventually(lambda: marks() == ["k", "k"])
            gate.touch()
            assert continuum.result(second, timeout=10) == f"receipt {second.id} k"

    def test_activities_without_a_key_ask_nobody(self, monkeypatch):
        monkeypatch.setattr(Keys, "ask", None)
        with worker():
            assert continuum.result(continuum.start(workflows.five_steps, 0), timeout=10) == 5


class TestClaims:
    """The rows themselves."""

    @staticmethod
    def ask(*requests):
        async def scenario():
            link = Link(lambda: connect("default", application_name="keys"), "tests")
            asked = Keys(link)
            running = asyncio.create_task(asked.run())
            answers = {}
            done = asyncio.Event()

            def answered(request, answer):
                answers[request] = answer
                if len(answers) == len(requests):
                    done.set()

            for request in requests:
                asked.ask(request, lambda answer, r=request: answered(r, answer))
            await asyncio.wait_for(done.wait(), 10)
            running.cancel()
            await link.close()
            return [answers[request] for request in requests]

        return asyncio.run(scenario())

    @staticmethod
    def settle(*outcomes):
        async def scenario():
            async with await connect("default", application_name="keys") as own:
                await write_outcomes(own, outcomes)

        asyncio.run(scenario())

    @staticmethod
    def request(run, command_id="0:1", key="k"):
        return KeyRequest(run.id, command_id, "charge", key)

    @pytest.fixture
    def one(self):
        return RunFactory(state="running")

    @pytest.fixture
    def two(self):
        return RunFactory(state="running")

    def test_of_two_in_one_round_the_first_gets_it(self, one, two):
        answers = self.ask(self.request(one), self.request(two))
        assert [answer.state for answer in answers] == [KeyState.OURS, KeyState.HELD]

    def test_a_holder_that_asks_again_still_holds_it(self, one):
        for _ in range(2):
            assert self.ask(self.request(one))[0].state is KeyState.OURS

    def test_keys_do_not_disturb_each_other(self, one, two):
        answers = self.ask(self.request(one, key="a"), self.request(two, key="b"))
        assert [answer.state for answer in answers] == [KeyState.OURS] * 2

    @pytest.mark.parametrize("state", ["completed", "failed", "cancelled", None])
    def test_a_holder_whose_run_is_over_or_gone_loses_it(self, one, two, state):
        self.ask(self.request(one))
        if state is None:
            Run.objects.filter(id=one.id).delete()
        else:
            Run.objects.filter(id=one.id).update(state=state)
        three = RunFactory(state="running")
        answers = self.ask(self.request(two), self.request(three))
        assert [answer.state for answer in answers] == [KeyState.OURS, KeyState.HELD]

    @pytest.mark.parametrize("state", ["pending", "running", "suspended", "stuck_unknown_version"])
    def test_a_holder_whose_run_lives_keeps_it(self, one, two, state):
        self.ask(self.request(one))
        Run.objects.filter(id=one.id).update(state=state, owner_id=None)
        assert self.ask(self.request(two))[0].state is KeyState.HELD

    def test_a_result_stays_whatever_becomes_of_its_run(self, one, two):
        self.ask(self.request(one))
        self.settle(KeyOutcome(key_id("charge", "k"), one.id, "0:1", '{"paid":true}'))
        Run.objects.filter(id=one.id).delete()
        [answer] = self.ask(self.request(two))
        assert answer.state is KeyState.VALUE
        assert answer.value_json.replace(" ", "") == '{"paid":true}'

    @pytest.mark.parametrize("value", ['"mine"', None])
    def test_only_the_holder_decides_what_becomes_of_it(self, one, two, value):
        self.ask(self.request(one))
        self.settle(
            KeyOutcome(key_id("charge", "k"), two.id, "0:1", value),
            KeyOutcome(key_id("charge", "k"), one.id, "0:2", value),
        )
        assert self.ask(self.request(one))[0].state is KeyState.OURS
        self.settle(KeyOutcome(key_id("charge", "k"), one.id, "0:1", '"real"'))
        self.settle(KeyOutcome(key_id("charge", "k"), one.id, "0:1", None))
        assert self.ask(self.request(two))[0].value_json == '"real"'

    def test_the_second_of_two_workers_waits_for_the_firsts_commit(self, one, two):
        async def claim_waits():
            async with await connect("default", application_name="watcher") as watcher:
                query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'keys' AND wait_event_type = 'Lock'"
                return await (await watcher.execute(query)).fetchone()

        async def scenario():
            first = await connect("default", application_name="keys")
            link = Link(lambda: connect("default", application_name="keys"), "tests")
            asked, answers = Keys(link), asyncio.Queue()
            running = asyncio.create_task(asked.run())
            async with first, first.transaction():
                await first.execute(
                    "INSERT INTO continuum_activity_results (run_id, command_id, kind, result) VALUES "
                    "(%s, 'key', 'activity_key', %s)",
                    (key_id("charge", "k"), f'{{"holder": ["{one.id}", "0:1"]}}'),
                )
                asked.ask(self.request(two), answers.put_nowait)
                await eventually_async(claim_waits)
                assert answers.empty()
            answer = await asyncio.wait_for(answers.get(), 10)
            running.cancel()
            await link.close()
            return answer

        assert asyncio.run(scenario()).state is KeyState.HELD


@pytest.mark.cluster
class TestKill:
    def test_a_killed_holder_still_holds_its_key_and_comes_to_an_end_elsewhere(self, start_worker, gate):  # noqa: F811
        holder = continuum.start(flows.pays, "k", str(gate))
        first = start_worker()
        eventually(lambda: marks() == ["k"], 30)
        second = continuum.start(flows.pays, "k", str(gate))
        first.kill()
        start_worker()
        eventually(lambda: marks() == ["k", "k"], 30)
        eventually(lambda: waits(second), 30)
        gate.touch()
        assert continuum.result(holder, timeout=30) == continuum.result(second, timeout=30) == f"receipt {holder.id} k"
        assert marks() == ["k", "k"]
        assert_sound()

    def test_two_workers_race_for_one_key(self, start_worker, gate):  # noqa: F811
        gate.touch()
        runs = [continuum.start(flows.pays, f"k{n % 5}", str(gate)) for n in range(60)]
        start_worker("--concurrency", "10")
        start_worker("--concurrency", "10")
        receipts = {continuum.result(run, timeout=60) for run in runs}
        assert len(receipts) == 5
        assert marks() == [f"k{n}" for n in range(5)]
        assert_sound()

    def test_a_transactional_one_that_dies_after_its_commit_is_not_charged_again(
        self,
        start_worker,  # noqa: F811
        subprocess_environment,
    ):
        subprocess_environment["CRASH"] = "transaction:committed"
        first = continuum.start(flows.pays_once, "k")
        assert start_worker().wait() == -signal.SIGKILL
        del subprocess_environment["CRASH"]
        second = continuum.start(flows.pays_once, "k")
        start_worker()
        assert continuum.result(second, timeout=30) == continuum.result(first, timeout=30) == f"receipt {first.id}"
        assert marks() == ["k"]


def test_looking_keys_up_uses_the_primary_key():
    from continuum.worker.sql import load

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("EXPLAIN " + load("keys_look"), {"key_ids": "{" + str(key_id("charge", "k")) + "}"})
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Index" in plan
    assert "continuum_activity_results_pkey" in plan
