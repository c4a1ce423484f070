"""retry() and fork() with real workers: what runs again, what does not, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pytest

import continuum
from continuum import (
    activity,
    compensate_all,
    continue_as_new,
    random,
    run_info,
    saga,
    side_effect,
    uuid4,
    wait_signal,
    workflow,
)
from continuum.models import Run
from tests.app import workflows as flows
from tests.app.models import Effect
from tests.workers import run_until_idle

pytestmark = pytest.mark.django_db(transaction=True)

broken: set[str] = set()


@pytest.fixture(autouse=True)
def nothing_is_broken():
    broken.clear()
    yield
    broken.clear()


@activity
def do(key: str) -> str:
    """Leaves a mark, and then fails while its key is said to be broken."""
    Effect.objects.create(key=key)
    if key in broken:
        raise ConnectionError(f"{key} is broken")
    return key


@activity
def undo(key: str) -> None:
    Effect.objects.create(key=f"undo {key}")


@workflow
async def steps(names: list[str]) -> list[str]:
    return [await do(name) for name in names]


@workflow
async def side_by_side(names: list[str]) -> list[str]:
    return await asyncio.gather(*(do(name) for name in names))


@workflow
async def hides_its_failure() -> str:
    await do("first")
    try:
        await do("second")
    except continuum.ActivityError as error:
        raise ValueError("it did not work") from error
    return "worked"


@workflow
async def books(names: list[str]) -> str:
    async with saga():
        for name in names:
            await do(name).compensated_by(undo.bind(name))
        await do("last")
    return "booked"


@workflow
async def has_a_bug() -> str:
    await do("before")
    raise ZeroDivisionError("a bug")


async def mended() -> str:
    return await do("before") + await do("after")


@workflow
async def draws(names: list[str]) -> list[Any]:
    drawn: list[Any] = []
    for name in names:
        drawn.append([str(uuid4()), random(), side_effect(os.urandom, 4).hex(), str(run_info().run_id)])
        drawn.append(await do(name))
    drawn.append([str(uuid4()), random(), side_effect(os.urandom, 4).hex(), str(run_info().run_id)])
    return drawn


@workflow
async def waits_between() -> list[Any]:
    first = await wait_signal("go")
    await do("worked")
    second = await wait_signal("go")
    return [first, second, await wait_signal("go")]


@workflow
async def child(names: list[str]) -> list[str]:
    return [await do(name) for name in names]


@workflow
async def parent(names: list[str]) -> list[str]:
    await do("parent")
    return await child(names) + [await do("parent again")]


def marks(prefix=""):
    return list(Effect.objects.filter(key__startswith=prefix).order_by("id").values_list("key", flat=True))


def started(flow, *args, **options):
    run = continuum.start(flow, *args, **options)
    run_until_idle()
    return continuum.get_run(run)


def went_on(run):
    run_until_idle()
    return continuum.result(run, timeout=5)


def types(run):
    return [event.type for event in run.history()]


def command_of(run, name, nth=0):
    """The id of a command of ``do``, by its argument."""
    found = [e.command_id for e in run.history() if e.name == do.name and name in str(e.data.get("args"))]
    return list(dict.fromkeys(found))[nth]


class TestRetry:
    def test_what_succeeded_is_kept_and_what_failed_runs_again(self):
        broken.add("c")
        run = started(steps, ["a", "b", "c", "d"])
        assert (run.state, marks()) == ("failed", ["a", "b", "c"])
        broken.clear()
        assert went_on(continuum.retry(run)) == ["a", "b", "c", "d"]
        assert marks() == ["a", "b", "c", "c", "d"]
        row = continuum.get_run(run)
        assert (row.state, row.error) == ("completed", None)
        assert row.completed_at > run.completed_at

    def test_the_old_history_stays_readable(self):
        broken.add("b")
        run = started(steps, ["a", "b"])
        before = list(run.history())
        broken.clear()
        went_on(continuum.retry(run))
        history = list(run.history())
        assert history[: len(before)] == before
        assert [event.type for event in history[len(before) :]] == [
            *("run_retried", "run_resumed", "activity_completed", "run_completed"),
        ]
        assert [event.seq for event in history] == list(range(1, len(history) + 1))

    def test_a_run_can_fail_again_and_be_retried_again(self):
        broken.update("bc")
        run = started(steps, ["a", "b", "c"])
        for mended_now in "bc":
            broken.discard(mended_now)
            continuum.retry(run)
            run_until_idle()
        assert continuum.result(run) == ["a", "b", "c"]
        assert marks() == ["a", "b", "b", "c", "c"]

    def test_without_any_change_it_fails_again(self):
        broken.add("a")
        run = started(steps, ["a"])
        continuum.retry(run)
        run_until_idle()
        assert continuum.get_run(run).state == "failed"
        assert types(run).count("run_failed") == 2

    def test_of_several_side_by_side_only_those_run_again_that_have_no_result(self):
        broken.add("b")
        run = started(side_by_side, ["a", "b", "c"])
        kept = [event.data["args"][0] for event in run.history() if event.type == "activity_completed"]
        broken.clear()
        assert went_on(continuum.retry(run)) == ["a", "b", "c"]
        for name in kept:
            assert marks(name) == [name]
        assert marks("b") == ["b", "b"]

    def test_a_failure_behind_another_error_is_found(self):
        broken.add("second")
        run = started(hides_its_failure)
        assert run.error["type"] == "ValueError"
        broken.clear()
        assert went_on(continuum.retry(run)) == "worked"
        assert marks() == ["first", "second", "second"]

    def test_a_bug_goes_away_with_the_code_that_has_it(self, monkeypatch):
        run = started(has_a_bug)
        assert run.error["type"] == "ZeroDivisionError"
        continuum.retry(run)
        run_until_idle()
        assert continuum.get_run(run).state == "failed"
        monkeypatch.setattr(has_a_bug, "fn", mended)
        assert went_on(continuum.retry(run)) == "beforeafter"
        assert marks() == ["before", "after"]

    def test_a_saga_that_has_compensated_takes_its_steps_again(self):
        broken.add("last")
        run = started(books, ["flight", "hotel"])
        assert marks() == ["flight", "hotel", "last", "undo hotel", "undo flight"]
        broken.clear()
        assert went_on(continuum.retry(run)) == "booked"
        assert marks()[5:] == ["flight", "hotel", "last"]

    def test_a_saga_that_fails_once_more_compensates_once_more(self):
        broken.add("last")
        run = started(books, ["flight"])
        continuum.retry(run)
        run_until_idle()
        assert continuum.get_run(run).state == "failed"
        assert marks() == ["flight", "last", "undo flight"] * 2

    def test_signals_it_had_taken_and_those_that_come_meanwhile_are_there(self):
        broken.add("worked")
        run = continuum.start(waits_between)
        continuum.signal(run, "go", 1)
        run_until_idle()
        assert continuum.get_run(run).state == "failed"
        broken.clear()
        continuum.retry(run)
        continuum.signal(run, "go", 2)
        continuum.signal(run, "go", 3)
        assert went_on(run) == [1, 2, 3]

    def test_draws_are_the_same_where_the_code_has_been_before(self):
        broken.add("b")
        run = started(draws, ["a", "b"])
        broken.clear()
        result = went_on(continuum.retry(run))
        recorded = [e.data["result"].hex() for e in run.history() if e.type == "side_effect"]
        assert result[0][2] == recorded[0]
        assert result[2][2] == recorded[1]

    def test_replays_after_it_are_as_strict_as_any(self):
        """Taken up by worker after worker, it goes on from what the retry has left."""
        broken.add("worked")
        run = continuum.start(waits_between)
        continuum.signal(run, "go", 1)
        run_until_idle()
        broken.clear()
        continuum.retry(run)
        for n in (2, 3):
            run_until_idle()
            continuum.signal(run, "go", n)
        assert went_on(run) == [1, 2, 3]
        assert types(run).count("run_resumed") == 1


class TestRetryWithChildren:
    def test_the_child_goes_on_from_where_it_failed(self):
        broken.add("b")
        run = started(parent, ["a", "b"])
        assert run.state == "failed"
        (failed,) = Run.objects.filter(parent_run_id=run.id)
        assert failed.state == "failed"
        broken.clear()
        assert went_on(continuum.retry(run)) == ["a", "b", "parent again"]
        assert marks() == ["parent", "a", "b", "b", "parent again"]
        (again,) = Run.objects.filter(parent_run_id=run.id)
        assert (again.id, again.state) == (failed.id, "completed")

    def test_a_child_retried_first_answers_a_parent_retried_later(self):
        broken.add("b")
        run = started(parent, ["a", "b"])
        (failed,) = Run.objects.filter(parent_run_id=run.id)
        broken.clear()
        assert went_on(continuum.retry(failed)) == ["a", "b"]
        assert continuum.get_run(run).state == "failed"
        assert went_on(continuum.retry(run)) == ["a", "b", "parent again"]
        assert marks() == ["parent", "a", "b", "b", "parent again"]

    def test_a_child_that_was_cancelled_is_started_anew(self):
        run = continuum.start(awaits_listener)
        run_until_idle()
        (first,) = Run.objects.filter(parent_run_id=run.id)
        continuum.cancel(first)
        run_until_idle()
        assert continuum.get_run(run).state == "failed"
        continuum.retry(run)
        run_until_idle()
        second = Run.objects.filter(parent_run_id=run.id).exclude(id=first.id).get()
        continuum.signal(second, "go", "heard")
        assert went_on(run) == "heard"

    def test_down_to_the_descendant_that_failed(self):
        broken.add("b")
        run = started(grandparent, ["a", "b"])
        broken.clear()
        assert went_on(continuum.retry(run)) == ["a", "b", "parent again"]
        assert marks() == ["parent", "a", "b", "b", "parent again"]
        assert Run.objects.count() == 3

    def test_a_failure_the_run_has_dealt_with_stays(self):
        broken.update(["a", "b"])
        run = started(forgives, "a", "b")
        assert run.state == "failed"
        broken.clear()
        assert went_on(continuum.retry(run)) == ["forgiven", ["b"]]
        assert marks() == ["a", "b", "b"]

    def test_a_child_that_failed_while_nobody_waited_goes_on_too(self):
        broken.update(["a", "b"])
        run = continuum.start(two_at_once, "a", "b")
        run_until_idle()
        assert continuum.get_run(run).state == "failed"
        assert set(Run.objects.filter(parent_run_id=run.id).values_list("state", flat=True)) == {"failed"}
        broken.clear()
        assert went_on(continuum.retry(run)) == [["a"], ["b"]]
        assert sorted(marks()) == ["a", "a", "b", "b"]

    def test_a_child_that_was_continued_goes_on_at_its_tip(self):
        broken.add("second")
        run = started(awaits_continued)
        assert run.state == "failed"
        broken.clear()
        assert went_on(continuum.retry(run)) == "second"
        assert marks() == ["first", "second", "second"]

    def test_a_child_that_failed_after_a_step_that_was_undone_runs_once_more_and_not_twice(self):
        broken.add("b")
        run = started(books_with_child, ["a", "b"])
        assert marks() == ["hotel", "a", "b", "undo hotel"]
        broken.clear()
        assert went_on(continuum.retry(run)) == ["a", "b"]
        assert marks() == ["hotel", "a", "b", "undo hotel", "hotel", "b"]
        assert Run.objects.filter(parent_run_id=run.id).count() == 1

    def test_a_child_that_ends_before_the_code_waits_for_it_again_is_heard(self):
        broken.add("b")
        run = started(books_with_child, ["a", "b"])
        broken.clear()
        (failed,) = Run.objects.filter(parent_run_id=run.id)
        assert went_on(continuum.retry(failed)) == ["a", "b"]
        assert went_on(continuum.retry(run)) == ["a", "b"]
        assert marks().count("b") == 2

    def test_a_worker_that_dies_after_the_retry_does_not_retry_the_child_twice(self):
        broken.add("b")
        run = started(parent, ["a", "b"])
        continuum.retry(run)
        run_until_idle()  # the child fails once more, and so does the run
        assert continuum.get_run(run).state == "failed"
        assert marks().count("b") == 2
        broken.clear()
        assert went_on(continuum.retry(run)) == ["a", "b", "parent again"]
        assert marks() == ["parent", "a", "b", "b", "b", "parent again"]


@workflow
async def awaits_listener() -> Any:
    return await flows.listens()


@workflow
async def grandparent(names: list[str]) -> list[str]:
    return await parent(names)


@workflow
async def forgives(first: str, second: str) -> list[Any]:
    with contextlib.suppress(continuum.ChildError):
        await child([first])
    return ["forgiven", await child([second])]


@workflow
async def two_at_once(first: str, second: str) -> list[Any]:
    return await asyncio.gather(child([first]), child([second]))


@workflow
async def continues_once(name: str = "first") -> str:
    await do(name)
    if name == "first":
        continue_as_new("second")
    return name


@workflow
async def awaits_continued() -> str:
    return await continues_once()


@workflow
async def books_with_child(names: list[str]) -> list[str]:
    async with saga():
        await do("hotel").compensated_by(undo.bind("hotel"))
        return await child(names)


class TestFork:
    def test_shares_what_was_before_and_takes_another_way(self):
        broken.add("c")
        run = started(draws, ["a", "b", "c"])
        fork = continuum.fork(run, before=command_of(run, "b"))
        broken.clear()
        result = went_on(fork)
        assert marks() == ["a", "b", "c", "b", "c"]
        assert [result[index] for index in (1, 3, 5)] == ["a", "b", "c"]
        assert continuum.get_run(run).state == "failed"
        assert continuum.get_run(fork).forked_from_run_id == run.id

    def test_draws_are_the_same_before_and_others_after(self):
        run = started(draws, ["a", "b", "c"])
        source = continuum.result(run)
        fork = continuum.fork(run, before=command_of(run, "b"))
        result = went_on(fork)
        assert result[:3] == source[:3]  # what was drawn before the code asked for "b", and its result "a"
        assert result[2][3] == str(run.id)  # up to here the code was that run's
        for index in (4, 6):
            assert [mine != theirs for mine, theirs in zip(result[index], source[index], strict=True)] == [True] * 4
            assert result[index][3] == str(fork.id)

    def test_it_replays_as_what_it_is(self):
        run = started(draws_and_waits)
        fork = continuum.fork(run, before="0:99")
        for each in (fork, run):
            run_until_idle()
            continuum.signal(each, "go")
            run_until_idle()
            continuum.signal(each, "go")
        mine, theirs = went_on(fork), continuum.result(run)
        assert mine[0] == theirs[0]
        assert not set(mine[1:]) & set(theirs[1:])

    def test_a_fork_of_a_fork(self):
        run = started(draws, ["a", "b", "c"])
        first = continuum.fork(run, before=command_of(run, "b"))
        went_on(first)
        second = continuum.fork(first, before=command_of(first, "c"))
        result, parent_result, source = went_on(second), continuum.result(first), continuum.result(run)
        assert result[0] == source[0]
        assert result[:5] == parent_result[:5]
        assert result[6] != parent_result[6]
        assert marks("a") == ["a"]
        assert marks("b") == ["b", "b"]
        assert marks("c") == ["c"] * 3

    def test_of_a_retried_run_shares_what_the_retry_has_kept(self):
        broken.add("b")
        run = started(draws, ["a", "b", "c"])
        broken.clear()
        source = went_on(continuum.retry(run))
        fork = continuum.fork(run, before=command_of(run, "c"))
        result = went_on(fork)
        assert result[:5] == source[:5]
        assert marks() == ["a", "b", "b", "c", "c"]

    def test_a_fork_that_fails_can_be_retried(self):
        run = started(steps, ["a", "b", "c"])
        broken.add("c")
        fork = continuum.fork(run, before=command_of(run, "b"))
        run_until_idle()
        assert continuum.get_run(fork).state == "failed"
        broken.clear()
        assert went_on(continuum.retry(fork)) == ["a", "b", "c"]
        assert marks() == ["a", "b", "c", "b", "c", "c"]

    def test_a_fork_may_run_other_code_from_there_on(self, monkeypatch):
        run = started(has_a_bug)
        monkeypatch.setattr(has_a_bug, "fn", mended)
        fork = continuum.fork(run, before=command_of(run, "before"))
        assert went_on(fork) == "beforeafter"
        assert continuum.get_run(run).state == "failed"


@workflow
async def draws_and_waits() -> list[str]:
    drawn = [str(uuid4())]
    for _ in range(2):
        await wait_signal("go")
        drawn.append(str(uuid4()))
    return drawn


@workflow
async def undoes_by_hand() -> str:
    await do("one").compensated_by(undo.bind("one"))
    try:
        await do("two")
    except continuum.ActivityError:
        await compensate_all()
        raise
    return "done"


@activity(transactional=True)
def pay(key: str) -> str:
    Effect.objects.create(key=key)
    return key


@workflow
async def pays(names: list[str]) -> str:
    async with saga():
        for name in names:
            await pay(name).compensated_by(pay.bind(f"undo {name}"))
        await do("last")
    return "paid"


def test_transactional_steps_that_were_undone_take_effect_again_and_only_once_each_time():
    broken.add("last")
    run = started(pays, ["one", "two"])
    once = ["one", "two", "last", "undo two", "undo one"]
    assert marks() == once
    continuum.retry(run)
    run_until_idle()
    assert marks() == once * 2  # and undone again
    broken.clear()
    assert went_on(continuum.retry(run)) == "paid"
    assert marks() == [*once, *once, "one", "two", "last"]


def test_a_transactional_step_that_was_kept_is_not_taken_again():
    broken.add("last")
    run = started(pays_without_saga)
    broken.clear()
    assert went_on(continuum.retry(run)) == "kept"
    assert marks() == ["kept", "last", "last"]


@workflow
async def pays_without_saga() -> str:
    kept = await pay("kept")
    await do("last")
    return kept


def test_compensating_by_hand_is_no_different():
    broken.add("two")
    run = started(undoes_by_hand)
    broken.clear()
    assert went_on(continuum.retry(run)) == "done"
    assert marks() == ["one", "two", "undo one", "one", "two"]
