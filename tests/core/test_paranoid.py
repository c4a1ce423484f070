"""Paranoid mode: what cannot be repeated is found at the step that does it; what can be is left alone."""

import asyncio
import datetime
import itertools
import json
import random
import time
import uuid

import pytest
from hypothesis import given, settings

from continuum.core import effects, facts, lineage
from continuum.core.definitions import activity, workflow
from continuum.determinism import paranoid
from continuum.determinism.paranoid import ParanoidExecution, Shadow, UnrepeatableError
from continuum.exceptions import NonDeterminismError, ReplayDriftError
from tests.core import driver as driving
from tests.core.driver import RUN_ID, Recorder, close_all, drive
from tests.core.programs import program
from tests.core.test_properties import _THOROUGH, Story, chances, check as thoroughly

check = thoroughly if thoroughly is _THOROUGH else settings(thoroughly, max_examples=50)


class NotingShadow(Shadow):
    """One whose code may note things."""

    made = 0

    def _blank(self, loop):
        super()._blank(loop)
        self.notes = []
        NotingShadow.made += 1


class ParanoidRecorder(ParanoidExecution, Recorder):
    shadow = NotingShadow


@pytest.fixture(autouse=True)
def paranoia(monkeypatch):
    monkeypatch.setattr(driving, "Recorder", ParanoidRecorder)
    NotingShadow.made = 0


@activity
def step(value: object = None) -> object:
    return 1


counter = itertools.count()
seen: list[int] = []
ran: list[int] = []


@workflow
async def asks_for(what: str) -> None:
    await step(BAD[what]())


@workflow
async def returns(what: str) -> object:
    await step()
    return BAD[what]()


@workflow
async def branches() -> None:
    await step()
    if next(counter) % 2:
        await step("other")
    await effects.wait_signal("go")


@workflow
async def sleeps() -> None:
    await effects.sleep_until(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1))


@workflow
async def begets() -> None:
    await program([time.perf_counter_ns()])


@workflow
async def goes_on(number: int) -> None:
    await step()
    lineage.continue_as_new(next(counter))


@workflow
async def decides_more_and_more() -> None:
    await step()
    seen.append(1)
    for number in range(len(seen)):
        facts.side_effect(ran.append, number)
    await effects.wait_signal("go")


BAD = {
    "a clock": lambda: datetime.datetime.now().isoformat(),
    "a monotonic clock": time.perf_counter_ns,
    "randomness": random.random,
    "a uuid": lambda: str(uuid.uuid4()),
    "an address": lambda: KEPT.append(object()) or id(KEPT[-1]),
    "the text of an object": lambda: KEPT.append(object()) or repr(KEPT[-1]),
    "a global": lambda: next(counter),
}
KEPT: list[object] = []


class TestWhatCannotBeRepeated:
    @pytest.mark.parametrize("what", BAD)
    def test_is_found_in_arguments(self, what):
        with pytest.raises(UnrepeatableError) as found:
            drive(asks_for, what)
        assert found.value.position == "command 0:1"
        assert step.name in found.value.history
        assert found.value.history != found.value.code

    @pytest.mark.parametrize("what", BAD)
    def test_is_found_in_results(self, what):
        with pytest.raises(UnrepeatableError) as found:
            drive(returns, what)
        assert "run_completed" in found.value.position

    def test_is_found_in_branches(self):
        with pytest.raises(UnrepeatableError, match="0:2"):
            drive(branches)

    def test_is_found_in_due_times(self):
        with pytest.raises(UnrepeatableError, match="0:1 timer"):
            drive(sleeps)

    def test_is_found_in_what_children_are_given(self):
        with pytest.raises(UnrepeatableError, match="0:1 child program"):
            drive(begets)

    def test_is_found_in_what_a_successor_is_given(self):
        with pytest.raises(UnrepeatableError, match="run_continued"):
            drive(goes_on, 1)

    def test_is_found_in_decisions_and_no_side_effect_runs_again(self):
        seen.clear(), ran.clear()
        with pytest.raises(UnrepeatableError, match="side_effect"):
            drive(decides_more_and_more)
        assert ran == [0]


class TestFinding:
    def found(self, definition, *arguments):
        with pytest.raises(UnrepeatableError) as found:
            drive(definition, *arguments)
        return found.value

    def test_it_is_both_kinds_of_error(self):
        assert isinstance(self.found(asks_for, "randomness"), NonDeterminismError)
        assert isinstance(self.found(asks_for, "randomness"), ReplayDriftError)

    def test_it_names_the_run_and_both_sides_and_what_it_may_be(self):
        text = str(self.found(asks_for, "randomness"))
        assert str(RUN_ID) in text
        assert "- it did:       0:1 activity" in text
        assert "+ its replay:   0:1 activity" in text
        assert "use now()" in text

    def test_it_comes_before_anything_is_handed_out(self):
        execution = ParanoidRecorder(asks_for, drive(sleepless).run, '["randomness"]')
        execution.begin(driving.EPOCH_US)
        with pytest.raises(UnrepeatableError):
            execution.take()

    def test_long_values_are_cut_to_where_they_differ(self):
        @workflow(name="asks_for_much")
        async def asks_for_much() -> None:
            await step("x" * 10_000 + str(next(counter)))

        found = self.found(asks_for_much)
        assert len(str(found)) < 2000
        assert found.history != found.code


@workflow
async def sleepless() -> None:
    pass


@workflow
async def counts(number: int) -> None:
    for _ in range(number):
        await step()


class TestWhatCanBeRepeated:
    @check
    @given(chances)
    def test_runs_as_it_does_without(self, chance):
        state = chance.getstate()
        run = Story(chance).tell()
        assert NotingShadow.made
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driving, "Recorder", Recorder)
            chance.setstate(state)
            other = Story(chance).tell()
        assert run.history == other.history
        assert run.execution.state() == other.execution.state()
        close_all()

    @check
    @given(chances)
    def test_so_do_runs_that_were_retried_or_forked_or_taken_over(self, chance):
        run = Story(chance).tell()
        for _ in range(2):
            if run.outcome is None or run.outcome.state != "failed":
                break
            if chance.randrange(2):
                run.perform = lambda command: 0
            run.retry().go()
        ids = [event.command_id for event in run.history if event.command_id]
        if ids:
            fork = run.fork(ids[chance.randrange(len(ids))])
            if chance.randrange(2):
                fork.crash()
            fork.go()
        close_all()

    def test_long_histories_are_not_compared_at_every_step(self, monkeypatch):
        monkeypatch.setattr(paranoid, "EVERY_STEP", 20)
        drive(counts, 200)
        assert 20 < NotingShadow.made < 80

    def test_nor_are_runs_that_wait_for_much(self, monkeypatch):
        monkeypatch.setattr(paranoid, "EVERY_STEP", 20)

        @workflow(name="waits_for_much")
        async def waits_for_much() -> None:
            await asyncio.gather(*(step(number) for number in range(100)))

        drive(waits_for_much)
        assert NotingShadow.made < 40

    def test_the_end_of_a_long_history_is_compared(self, monkeypatch):
        monkeypatch.setattr(paranoid, "EVERY_STEP", 20)

        @workflow(name="ends_by_lot")
        async def ends_by_lot() -> object:
            await counts.fn(23)
            return next(counter)

        with pytest.raises(UnrepeatableError):
            drive(ends_by_lot)

    def test_a_run_that_is_given_up_is_left_alone(self):
        run = drive(counts, 3)
        made = NotingShadow.made
        run.close()
        run.execution.take()
        assert NotingShadow.made == made

    def test_what_a_workflow_logs_is_logged_once(self, caplog):
        @workflow(name="logs_once")
        async def logs_once() -> None:
            facts.logger.warning("once")
            await step()
            facts.logger.warning("and done")

        drive(logs_once)
        assert [record.getMessage() for record in caplog.records] == ["once", "and done"]


def test_a_history_can_be_told_in_json():
    run = drive(counts, 2)
    asked = []
    execution = ParanoidRecorder(counts, run.run, "[2]", elsewhere=lambda request: asked.append(request))
    execution.begin(driving.EPOCH_US, run.history)
    execution.replay()
    execution.take()
    [request] = json.loads(json.dumps(asked))
    assert request["workflow"] == [counts.name, 1, counts.version_hash]
    assert [event[1] for event in request["events"]] == run.types


def test_any_kind_of_execution_can_be_made_to_compare(monkeypatch):
    monkeypatch.setenv("CONTINUUM_PARANOID", "0")
    assert paranoid.execution_class(Recorder) is Recorder
    monkeypatch.setenv("CONTINUUM_PARANOID", "1")
    kind = paranoid.execution_class(Recorder)
    assert kind is paranoid.execution_class(Recorder)
    execution = kind(asks_for, drive(sleepless).run, '["randomness"]')
    execution.begin(driving.EPOCH_US)
    with pytest.raises(UnrepeatableError):
        execution.take()
