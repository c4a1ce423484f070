"""patched() around a change: a run goes on alike wherever it stood in its history, and the first decision holds."""

import asyncio
import json
import os
from itertools import product

import pytest
from hypothesis import HealthCheck, Phase, given, note as remark, settings, strategies as st

from continuum.core.adoption import adopt
from continuum.core.definitions import activity, workflow
from continuum.core.effects import wait_signal
from continuum.core.facts import patched
from continuum.core.history import EventType
from continuum.exceptions import ReplayDriftError
from tests.core.driver import (
    EPOCH_US,
    Driver,
    Recorder,
    assert_replays,
    close_all,
    note,
    redeliver,
    replay,
    shuffled,
)
from tests.core.programs import Generator, _places, fate_of_child, outcome_of_attempt, program

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
_QUICK = settings(max_examples=100, derandomize=True, phases=[Phase.generate, Phase.shrink], **_COMMON)
_THOROUGH = settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "2000")), **_COMMON)
check = _THOROUGH if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else _QUICK

chances = st.randoms(use_true_random=False)


@pytest.fixture(autouse=True, scope="module")
def _released():
    yield
    close_all()


# -- generated programs ---------------------------------------------------------------------------------------------


class Change:
    """A program, the same with one step changed, and the same with the change behind a patch."""

    def __init__(self, chance):
        self.chance = chance
        self.old = Generator(chance.randrange, families=bool(chance.randrange(2))).program()
        if '"go_on"' in json.dumps(self.old):
            self.old = Generator(chance.randrange, families=False).program()  # what it goes on with is its code
        places = list(_places(self.old))
        self.place = chance.randrange(len(places))
        node = places[self.place][0][places[self.place][1]]
        others = [["act", "gamma", 9], ["sleep", 7], ["signal", "a", 3], ["pass"], ["gather", node, ["act", "beta", 8]]]
        self.step = [["seq", ["act", "beta", 7], node], *others][chance.randrange(6)]
        self.behind = self.changed(["if", ["patched", "fix"], node, self.step])  # "false" has an odd number of letters
        self.new = self.changed(self.step)
        remark(f"program {json.dumps(self.old)} behind a patch: {json.dumps(self.behind)}")

    def changed(self, node):
        code = json.loads(json.dumps(self.old))
        sequence, index = list(_places(code))[self.place]
        sequence[index] = json.loads(json.dumps(node))
        return code

    def drive(self, code):
        driver = Driver(
            program,
            (code,),
            scheduler=shuffled(self.chance.randrange),
            mocks={"offspring": fate_of_child},
            perform=outcome_of_attempt,
        ).open()
        for number in range(self.chance.randrange(4)):
            driver.signal("ab"[self.chance.randrange(2)], number, after=self.chance.randrange(6))
        if self.chance.randrange(5) == 4:
            driver.cancel("enough", after=self.chance.randrange(6))
        return driver

    def took(self, execution):
        return execution.patches.get("fix")


def boundaries(driver):
    """The lengths that the history had whenever something was committed."""
    return sorted(length for length in driver.states if not (length == 0 and _cancelled_first(driver)))


def _cancelled_first(driver):
    return bool(driver.history) and "before_start" in driver.history[0].data


@check
@given(chances)
def test_a_run_goes_on_alike_under_changed_code_from_wherever_it_stood(chance):
    change = Change(chance)
    driver = change.drive(change.old).go()
    for length in boundaries(driver):
        history = driver.history[:length]
        execution = replay(driver, history, arguments=json.dumps([change.behind]))
        assert execution.seq >= length
        if change.took(execution):
            # Only where no history was left may it have taken the new way.
            answered = {event.command_id for event in history if event.type not in (EventType.PATCHED, "side_effect")}
            assert answered - {None} <= {asked.id for asked in execution.asked}
        else:
            assert execution.asked == list(driver.states[length].asked)
            rest = driver.history[length:]
            if change.took(execution) is False:
                execution.take()
                for event in rest:
                    if execution.seq < event.seq:
                        redeliver(execution, event)
                assert execution.take().journal == rest
                assert tuple(execution.asked) == driver.states[len(driver.history)].asked
        execution.close()
    close_all()


@check
@given(chances)
def test_adopted_on_its_way_it_replays_from_everywhere_since(chance):
    change = Change(chance)
    old = change.drive(change.old)
    for _ in range(chance.randrange(8)):
        old.step()
    if old.outcome is not None or _cancelled_first(old):
        close_all()
        return
    old.close()
    driver = Driver(
        program, (change.behind,), shuffled(chance.randrange), {"offspring": fate_of_child}, outcome_of_attempt
    )
    driver.history, driver.clock_us = list(old.history), old.clock_us
    driver.children, driver.cancelled, driver.ended = old.children, old.cancelled, old.ended
    driver.messages, driver._sent = old.messages, old._sent
    driver.execution = Recorder(program, driver.run, driver.input)
    driver.execution.begin(EPOCH_US, driver.history)
    assert driver.execution.replay()
    adopt(driver.execution, 1, "old", driver.clock_us)
    driver._take()
    assert driver.history[len(old.history)].type == EventType.VERSION_ADOPTED
    driver.taken_up = len(driver.history)
    assert_replays(driver.go())
    took = change.took(driver.execution)
    for length in boundaries(driver):
        assert change.took(replay(driver, driver.history[:length])) in (took, None)
    close_all()


@check
@given(chances)
def test_the_call_may_go_when_every_run_has_taken_the_new_way(chance):
    change = Change(chance)
    driver = change.drive(change.behind).go()
    for length in boundaries(driver):
        execution = replay(driver, driver.history[:length], arguments=json.dumps([change.new]))
        assert execution.asked == list(driver.states[length].asked)
        pending = [command.id for command in execution.pending.values()]
        assert pending == [command[0] for command in driver.states[length].pending]
        execution.close()
    close_all()


# -- every place and every prefix of a small program ----------------------------------------------------------------


@activity(name="patched.a")
def act(what: str) -> str:
    return what


def code(patches):
    """Three steps; those in ``patches`` are done another way behind a patch of the name given for them."""

    async def flow():
        done = []
        for number in range(3):
            name = patches.get(number)
            new = name is not None and patched(name)
            done.append(await act(f"new {number}" if new else f"step {number}"))
        return done

    return workflow(name=f"test_patched.{sorted(patches.items())}")(flow)


PLACES = [{n: name for n, name in enumerate(names) if name} for names in product((None, "p", "q"), repeat=3)]


@pytest.mark.parametrize("patches", PLACES, ids=str)
@pytest.mark.parametrize("lived", range(4))
def test_a_patch_is_new_where_the_code_arrives_live_and_old_where_history_goes_on(patches, lived):
    driver = Driver(code({})).open()
    for _ in range(lived):
        driver.step()
    history = driver.history
    driver.close()
    later = Driver(code(patches))
    later.history, later.clock_us = list(history), driver.clock_us
    later.open().go()
    # What was lived through is settled; each name is decided where the code first comes to it.
    decided = {}
    expected = []
    for number in range(3):
        name = patches.get(number)
        if name is not None:
            decided.setdefault(name, number >= lived)
        expected.append(f"new {number}" if decided.get(name) else f"step {number}")
    assert later.result == expected
    assert later.types.count("patched") == sum(decided.values())
    later.taken_up = len(history)
    execution = replay(later, later.history)
    assert execution.patches == decided


# -- the first decision holds ---------------------------------------------------------------------------------------


def test_tasks_that_run_at_once_share_it():
    async def old():
        await asyncio.gather(*(both(False) for _ in range(2)))

    async def new():
        await asyncio.gather(*(both(True) for _ in range(2)))

    async def both(asks):
        await act("first")
        if asks:
            note(patched("fix"))
        await act("second")

    old, new = workflow(name="test_patched.shared")(old), workflow(name="test_patched.shared2")(new)
    driver = Driver(old).open()
    driver.step()
    driver.step()
    driver.step()  # of one of the two tasks the second step is in the history, of the other the first only
    driver.close()
    later = Driver(new)
    later.history, later.clock_us = list(driver.history), driver.clock_us
    later.open().go()
    assert later.notes == [False, False]
    assert "patched" not in later.types


def test_it_holds_after_a_crash_and_another_deploy():
    driver = Driver(code({2: "p"})).open().go()
    assert driver.result[2] == "new 2"
    for length in range(len(driver.history)):
        execution = replay(driver, driver.history[:length], definition=code({2: "p"}))
        assert execution.patches.get("p", True)


def fails_at_first(when, *, asks=True):
    async def flow():
        if asks:
            note(patched("fix"))
        await act("before")
        if asks:
            note(patched("late"))
        await act("fails")

    return workflow(name=f"test_patched.retry{when}{asks}")(flow)


def failing(command):
    if json.loads(command.args) == ["fails"]:
        raise ValueError("not yet")
    return "done"


def test_it_holds_through_a_retry():
    driver = Driver(fails_at_first("a"), perform=failing).open().go()
    assert driver.outcome.state == "failed"
    assert driver.notes == [True, True]
    driver.perform = lambda command: "done"
    driver.retry().go()
    assert driver.notes == [True, True]
    assert driver.types.count("patched") == 2
    assert_replays(driver)


def test_a_retry_with_changed_code_takes_the_new_way_only_where_nothing_of_the_old_is_kept():
    driver = Driver(fails_at_first("b", asks=False), perform=failing).open().go()
    driver.perform = lambda command: "done"
    driver.retry(definition=fails_at_first("b")).go()
    assert driver.notes == [False, True]  # "before" is kept, and what failed after it is not
    assert_replays(driver)


def test_a_fork_keeps_what_was_decided_before_it_and_decides_anew_what_came_later():
    driver = Driver(code({0: "p", 2: "q"})).open().go()
    fork = driver.fork("0:2").go()
    assert fork.result == driver.result
    kept = ["patched", "activity_completed", "run_forked"]
    assert fork.types == [*kept, "activity_completed", "patched", "activity_completed", "run_completed"]
    old = Driver(code({})).open().go()
    fork = old.fork("0:3", number=2)
    fork.definition = code({0: "p", 2: "q"})
    fork.crash()
    assert fork.go().result == ["step 0", "step 1", "new 2"]


def test_a_run_that_goes_on_as_another_and_a_child_decide_for_themselves():
    async def flow(times: int):
        await act("before")
        note(patched("fix"))
        return times

    definition = workflow(name="test_patched.own")(flow)
    first = Driver(definition, (1,)).open()
    first.step()
    first.close()
    fresh = Driver(definition, (1,)).open().go()
    assert fresh.notes == [True]


def test_a_call_that_went_too_early_drifts_and_guesses_nothing():
    driver = Driver(code({})).open().go()
    with pytest.raises(ReplayDriftError):
        replay(driver, driver.history, definition=changed_for_good())


def changed_for_good():
    async def flow():
        return [await act(f"new {number}") for number in range(3)]

    return workflow(name="test_patched.for_good")(flow)


def test_a_patch_decided_while_waiting_is_the_new_way_and_what_was_waited_for_is_given_up():
    async def old():
        return await wait_signal("old")

    async def new():
        return await wait_signal("new" if patched("fix") else "old")

    driver = Driver(workflow(name="test_patched.waits")(old)).open()
    driver.close()
    later = Driver(workflow(name="test_patched.waits2")(new)).open()
    assert [wait["name"] for wait in later.execution.waiting_on()] == ["new"]
