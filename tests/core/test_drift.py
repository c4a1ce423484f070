"""Replaying a history against changed code: a readable report where they part, and never anything in between."""

import asyncio
import inspect
import json

import pytest

from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.execution import Execution
from continuum.core.facts import side_effect
from continuum.core.history import Event
from continuum.core.sagas import saga
from continuum.exceptions import ReplayDriftError
from tests.core.driver import EPOCH_US, RUN_ID, Driver, note, replay


@activity(name="charge")
def charge(order: str, cents: int) -> str:
    return f"{order}:{cents}"


@activity(name="refund")
def refund(order: str, cents: int) -> str:
    return order


@activity(name="ship")
def ship(order: str) -> None: ...


def setting() -> int:
    return 7


def limit() -> int:
    return 8


async def old():
    await charge("o1", 900)
    await sleep(30)
    await wait_signal("go")
    side_effect(setting)
    await ship("o1")
    return "shipped"


def flow(fn):
    """Declare a version of the workflow, however often."""
    return workflow(name=f"test_drift.{fn.__qualname__}")(fn)


@pytest.fixture(scope="module")
def recorded():
    driver = Driver(flow(old)).open().signal("go", {"by": "me"}, after=60).go()
    assert driver.result == "shipped"
    return driver


def drift(recorded, new, history=None):
    """Replay, and return where history and code part, as the error tells it."""
    with pytest.raises(ReplayDriftError) as caught:
        replay(recorded, recorded.history if history is None else history, definition=flow(new))
    error = caught.value
    assert error.run == RUN_ID
    return error.position, error.history, error.code


def report(recorded, new, history=None):
    """Replay, and return what the error says and its details."""
    with pytest.raises(ReplayDriftError) as caught:
        replay(recorded, recorded.history if history is None else history, definition=flow(new))
    return str(caught.value), caught.value.details


def line_of(fn, words):
    """Where in this file a line of a function is, as a report names it."""
    lines, first = inspect.getsourcelines(fn)
    number = next(index for index, line in enumerate(lines, first) if words in line)
    return f"{__file__}:{number} in {fn.__qualname__}"


async def overcharges():
    await charge("o1", 900)
    await sleep(30)
    await wait_signal("go")
    side_effect(setting)
    await ship("o2")


def test_the_whole_message_says_where_what_differs_what_is_around_it_and_what_to_do(recorded):
    text, _ = report(recorded, overcharges)
    assert text == (
        f"run {RUN_ID} of test_drift.overcharges cannot go on: its history and its code do not fit together.\n"
        "\n"
        "Where:       command 0:5, event 5 of 6\n"
        f"Asked at:    {line_of(overcharges, 'o2')}\n"
        'In history:  0:5 activity completed ship with arguments ["o1"], recorded 2024-06-14 12:01:00 UTC\n'
        'In code:     0:5 activity ship with arguments ["o2"]\n'
        'Different:   argument 1 (order): "o1" in the history, "o2" in the code\n'
        "\n"
        "    event  history                                               code\n"
        "        2  0:2 timer fired with arguments [30.0]                 the same\n"
        "        3  0:3 signal received go                                the same\n"
        "        4  0:4 side effect setting                               the same\n"
        '>       5  0:5 activity completed ship with arguments ["o1"]     0:5 activity ship with arguments ["o2"]\n'
        "        6  run completed                                         not reached\n"
        "\n"
        "Nothing was recorded, nothing is lost: the run waits, and goes on by itself once code that fits is deployed.\n"
        '- Was the change meant? Keep the old way for such runs: if patched("name-of-the-change"): the new way, else: '
        "the old. Then deploy.\n"
        "- Was it not? Mend the workflow, and deploy.\n"
        "- Or give the run up: continuum.cancel(run).\n"
        "- Or do this step and all after it anew, as another run with the code at hand: "
        'continuum.fork(run, before="0:5").'
    )


def test_the_details_are_the_same_for_programs(recorded):
    _, details = report(recorded, overcharges)
    assert json.loads(json.dumps(details)) == details
    assert details == {
        "position": "0:5 (event 5)",
        "history": '0:5 activity completed ship with arguments ["o1"]',
        "code": '0:5 activity ship with arguments ["o2"]',
        "location": line_of(overcharges, "o2"),
        "command_id": "0:5",
        "event": 5,
        "events": 6,
        "recorded_at": "2024-06-14T12:01:00.002000+00:00",
        "difference": 'argument 1 (order): "o1" in the history, "o2" in the code',
        "around": [
            [2, "0:2 timer fired with arguments [30.0]", "the same"],
            [3, "0:3 signal received go", "the same"],
            [4, "0:4 side effect setting", "the same"],
            [5, '0:5 activity completed ship with arguments ["o1"]', '0:5 activity ship with arguments ["o2"]'],
            [6, "run completed", "not reached"],
        ],
        "workflow": "test_drift.overcharges",
    }


class TestWhere:
    def test_in_what_the_workflow_calls(self, recorded):
        async def helper():
            return await charge("o1", 901)

        async def new():
            async with saga():
                await helper()

        assert report(recorded, new)[1]["location"] == line_of(helper, "901")

    def test_where_a_task_was_made_that_is_nothing_but_an_activity(self, recorded):
        async def new():
            await charge("o1", 900)
            await asyncio.gather(sleep(29), sleep(30))

        assert report(recorded, new)[1]["location"] == line_of(new, "gather")

    def test_in_the_task_that_asks(self):
        def version(cents):
            async def part():
                await charge("o1", cents)

            async def new():
                await asyncio.gather(sleep(60), part())

            return new, part

        new, _ = version(900)
        driver = Driver(flow(new)).open().go()
        changed, part = version(901)
        with pytest.raises(ReplayDriftError) as caught:
            replay(driver, driver.history, definition=flow(changed))
        assert caught.value.details["location"] == line_of(part, "cents)")

    def test_in_code_that_runs_just_then(self, recorded):
        async def new():
            side_effect(limit)

        text, details = report(recorded, new)
        assert details["location"] == line_of(new, "limit")
        assert 'In history:  0:1 activity completed charge with arguments ["o1",900], recorded' in text

    def test_nowhere_once_the_code_has_ended(self, recorded):
        async def new():
            pass

        text, details = report(recorded, new)
        assert details["location"] is None
        assert "Asked at:    nowhere: the code has ended" in text


@activity(name="pay")
def pay(order: str, cents: int = 1, *, currency: str = "EUR") -> None: ...


class TestWhatDiffers:
    def between(self, then, now):
        """What is said to differ when the code once asked for the one and now asks for the other."""

        def version(effect):
            async def new():
                await effect()

            return new

        driver = Driver(flow(version(then))).open().signal("go", 1, after=2).go()
        return report(driver, version(now), driver.history[:1])[1]["difference"]

    @pytest.mark.parametrize(
        ("then", "now", "difference"),
        [
            (lambda: charge("o1", 1), lambda: ship("o1"), "the activity: charge in the history, ship in the code"),
            (lambda: ship("a"), lambda: sleep(1), "the kind: history has an activity here, the code asks for a timer"),
            (lambda: sleep(1), lambda: sleep(2.5), "how long: 1 s in the history, 2.5 s in the code"),
            (
                lambda: wait_signal("go", timeout=0.5),
                lambda: wait_signal("go", timeout=60),
                "how long: 0.5 s in the history, 60 s in the code",
            ),
            (lambda: wait_signal("go"), lambda: wait_signal("no"), "the signal: go in the history, no in the code"),
            (
                lambda: charge("a", 1),
                lambda: charge("b", 2),
                'argument 1 (order): "a" in the history, "b" in the code; '
                "argument 2 (cents): 1 in the history, 2 in the code",
            ),
            (lambda: pay("a"), lambda: pay("a", 1), "argument 2 (cents): none in the history, 1 in the code"),
            (
                lambda: pay("a", currency="USD"),
                lambda: pay("a"),
                'the arguments: {"args": ["a"], "kwargs": {"currency": "USD"}} in the history, ["a"] in the code',
            ),
            (lambda: pay("a", 1), lambda: pay("a", True), "argument 2 (cents): 1 in the history, true in the code"),
            (
                lambda: ship("x" * 100),
                lambda: ship("y"),
                "the arguments; of long ones history keeps a hash only, so which of them cannot be said",
            ),
        ],
    )
    def test_is_said_in_words(self, then, now, difference):
        assert self.between(then, now) == difference


def test_an_adoption_is_shown_among_the_events_around(recorded):
    history = [*recorded.history[:4]]
    time_us = history[-1].time_us
    history.append(Event(5, "version_adopted", None, None, '{"from":"ab","to":"cd"}', time_us))
    history += [event._replace(seq=event.seq + 1) for event in recorded.history[4:]]
    assert replay(recorded, history).outcome
    text, _ = report(recorded, overcharges, history)
    assert "5  version adopted, from ab to cd                        the same" in text


def test_a_changed_argument(recorded):
    async def new():
        await charge("o1", 901)

    assert drift(recorded, new) == (
        "0:1 (event 1)",
        '0:1 activity completed charge with arguments ["o1",900]',
        '0:1 activity charge with arguments ["o1",901]',
    )


@pytest.mark.parametrize(("was", "is_now"), [(1, True), (1, 1.0), (0, False), (0.0, -0.0), ([1], (1,)), ("1", 1)])
def test_arguments_that_python_takes_for_equal_are_not(was, is_now):
    @activity(name=f"echo{was}{is_now}")
    def echo(value):
        return value

    def version(value):
        async def new():
            await echo(value)

        return flow(new)

    recorded = Driver(version(was)).open().go()
    assert replay(recorded, recorded.history, definition=version(was)).outcome
    with pytest.raises(ReplayDriftError):
        replay(recorded, recorded.history, definition=version(is_now))


def test_long_arguments_are_compared_too():
    def version(text):
        async def new():
            await ship(text)

        return flow(new)

    recorded = Driver(version("x" * 500)).open().go()
    with pytest.raises(ReplayDriftError) as caught:
        replay(recorded, recorded.history, definition=version("x" * 499 + "y"))
    assert caught.value.history.startswith("0:1 activity completed ship with arguments #")
    assert caught.value.code == f'0:1 activity ship with arguments ["{"x" * 198}…'


def test_history_that_was_reformatted_on_its_way_is_the_same_history(recorded):
    history = [event._replace(data=json.dumps(json.loads(event.data), indent=1)) for event in recorded.history]
    assert replay(recorded, history).outcome == recorded.outcome


def test_a_removed_step(recorded):
    async def new():
        await charge("o1", 900)
        await wait_signal("go")
        side_effect(setting)
        await ship("o1")
        return "shipped"

    assert drift(recorded, new) == (
        "0:2 (event 2)",
        "0:2 timer fired with arguments [30.0]",
        "0:2 signal go with arguments []",
    )


def test_an_extra_step(recorded):
    async def new():
        await charge("o1", 900)
        await ship("o1")
        await sleep(30)
        await wait_signal("go")

    assert drift(recorded, new) == (
        "0:2 (event 2)",
        "0:2 timer fired with arguments [30.0]",
        '0:2 activity ship with arguments ["o1"]',
    )


def test_swapped_steps(recorded):
    async def new():
        await sleep(30)
        await charge("o1", 900)

    assert drift(recorded, new) == (
        "0:1 (event 1)",
        '0:1 activity completed charge with arguments ["o1",900]',
        "0:1 timer with arguments [30.0]",
    )


def test_a_changed_sleep(recorded):
    async def new():
        await charge("o1", 900)
        await sleep(31)

    assert drift(recorded, new) == (
        "0:2 (event 2)",
        "0:2 timer fired with arguments [30.0]",
        "0:2 timer with arguments [31.0]",
    )


def test_a_changed_signal_name(recorded):
    async def new():
        await charge("o1", 900)
        await sleep(30)
        await wait_signal("start")

    assert drift(recorded, new) == (
        "0:3 (event 3)",
        "0:3 signal received go",
        "0:3 signal start with arguments []",
    )


def test_a_signal_that_nobody_waited_for_cannot_go_to_somebody_now(recorded):
    async def later():
        await sleep(30)
        await wait_signal("go")
        await sleep(1)

    async def sooner():
        waiting = asyncio.create_task(wait_signal("go"))
        await sleep(30)
        await waiting
        await sleep(1)

    driver = Driver(flow(later)).open().signal("go", 1).go()
    assert drift(driver, sooner) == (
        "signal_received (event 1)",
        "signal received go, kept for later",
        "0.1:1 signal go with arguments []",
    )


def test_a_missing_side_effect(recorded):
    async def new():
        await charge("o1", 900)
        await sleep(30)
        await wait_signal("go")
        await ship("o1")

    position, history, code = drift(recorded, new)
    assert position == "0:4 (event 4)"
    assert history == f"0:4 side effect {setting.__qualname__}"
    assert code == 'something else: 0:4 activity ship with arguments ["o1"]'


def test_another_side_effect(recorded):
    async def new():
        await charge("o1", 900)
        await sleep(30)
        await wait_signal("go")
        side_effect(limit)

    assert drift(recorded, new) == ("0:4", "0:4 side effect setting", "side_effect limit")


def test_a_side_effect_that_history_does_not_know(recorded):
    async def new():
        side_effect(limit)
        await charge("o1", 900)

    assert drift(recorded, new) == (
        "0:1",
        '0:1 activity completed charge with arguments ["o1",900]',
        "side_effect limit",
    )


def test_code_that_ends_early(recorded):
    async def new():
        await charge("o1", 900)
        return "shipped"

    assert drift(recorded, new) == (
        "0:2 (event 2)",
        "0:2 timer fired with arguments [30.0]",
        "nothing: the code has ended completed",
    )


def test_code_that_goes_on_where_history_ends(recorded):
    async def new():
        await old()
        await ship("again")

    assert drift(recorded, new) == (
        "run_completed (event 6)",
        "run completed",
        'something else: 0:6 activity ship with arguments ["again"]',
    )


def test_code_that_ends_differently(recorded):
    async def other():
        await old()
        return "sent"

    async def fails():
        await old()
        raise ValueError

    assert drift(recorded, other) == (
        "run_completed (event 6)",
        'run completed {"result":"shipped"}',
        'the code has ended completed {"result":"sent"}',
    )
    assert drift(recorded, fails) == (
        "run_completed (event 6)",
        'run completed {"result":"shipped"}',
        'the code has ended failed {"type": "ValueError"}',
    )


def test_code_that_waits_for_what_nobody_answers(recorded):
    async def new():
        await asyncio.Event().wait()

    assert drift(recorded, new)[2] == "nothing: the code waits for nothing that history could answer"


def test_input_that_does_not_fit_any_more(recorded):
    async def new(order: str):
        await charge(order, 900)

    assert drift(recorded, new)[2] == "nothing: the code has ended failed"


def test_code_that_ends_where_a_cancel_request_found_it_running():
    async def waits():
        await sleep(1000)

    async def ends():
        pass

    driver = Driver(flow(waits)).open().cancel("x").go()
    assert drift(driver, ends) == (
        "cancel_requested (event 1)",
        "cancel requested",
        "nothing: the code has ended completed",
    )


@pytest.mark.parametrize("net", [Exception, BaseException])
def test_code_cannot_swallow_a_drift(recorded, net):
    async def new():
        try:
            side_effect(limit)
        except net:
            note("swallowed")
        await charge("o1", 900)
        return "as if nothing had happened"

    assert drift(recorded, new)[2] == "side_effect limit"


def test_code_that_leaves_the_process_cannot_hide_a_drift_either(recorded):
    async def new():
        try:
            side_effect(limit)
        finally:
            raise SystemExit

    assert drift(recorded, new)[2] == "side_effect limit"


def test_a_drift_in_a_callback_is_not_lost(recorded):
    async def new():
        asyncio.get_running_loop().call_soon(side_effect, limit)
        await charge("o1", 900)

    assert drift(recorded, new) == ("~:1", "nothing", "side_effect limit")


def test_a_drift_records_nothing_and_starts_nothing(recorded):
    async def new():
        await charge("o1", 900)
        asyncio.create_task(ship("o1"))  # noqa: RUF006
        side_effect(limit)

    execution = Execution(flow(new), recorded.run, "[]")
    execution.begin(EPOCH_US, recorded.history)
    with pytest.raises(ReplayDriftError):
        execution.replay()
    assert execution.take().journal == []


def test_long_lists_of_what_the_code_waits_for_are_cut():
    async def many():
        await asyncio.gather(*(ship("x" * 1000) for _ in range(50)))

    driver = Driver(flow(old)).open().go()
    with pytest.raises(ReplayDriftError) as caught:
        replay(driver, driver.history, definition=flow(many))
    assert caught.value.code.count("activity ship") == 5
    assert len(str(caught.value)) < 3_000


def test_events_after_the_end_are_a_drift(recorded):
    extra = Event(7, "timer_fired", "0:9", None, '{"args":[1.0]}', recorded.history[-1].time_us)
    with pytest.raises(ReplayDriftError) as caught:
        replay(recorded, [*recorded.history, extra])
    assert caught.value.code == "nothing: the code has ended completed"
