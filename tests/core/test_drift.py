"""Replaying a history against changed code: a readable report where they part, and never anything in between."""

import asyncio
import json

import pytest

from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.execution import Execution
from continuum.core.facts import side_effect
from continuum.core.history import Event
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


def test_the_whole_message_is_a_diff_and_says_what_to_do(recorded):
    async def new():
        await refund("o1", 900)

    with pytest.raises(ReplayDriftError) as caught:
        replay(recorded, recorded.history, definition=flow(new))
    assert str(caught.value) == (
        f"replay of run {RUN_ID} drifted at command 0:1 (event 1):\n"
        '  - history holds:   0:1 activity completed charge with arguments ["o1",900]\n'
        '  + the code asks:   0:1 activity refund with arguments ["o1",900]\n'
        "The workflow's code has changed in a way this history does not allow. Nothing was recorded: restore the code, "
        'or guard the change with patched("name"), and the run goes on.'
    )


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

    assert drift(recorded, new) == ("0:1", "no such record", "side_effect limit")


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

    assert drift(recorded, new) == ("~:1", "no such record", "side_effect limit")


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
