"""Histories in files: dumped from the database or from memory, replayed by what the code has become."""

import asyncio
import json
from decimal import Decimal

import pytest

import continuum
from continuum import (
    ActivityError,
    ReplayDriftError,
    Run,
    RunNotFoundError,
    activity,
    logger,
    side_effect,
    sleep,
    uuid4,
    wait_signal,
    workflow,
)
from continuum.core.definitions import WorkflowDefinition
from continuum.ids import uuid7
from continuum.testing import assert_replays, dump_history
from continuum.testing.history_files import RecordedHistory
from tests.workers import run_until_idle


@activity(name="histories.charge")
def charge(card: str, price: Decimal) -> dict:
    return {"token": f"tok-{card}", "price": price, "long": "x" * 100}


@activity(name="histories.fails")
def fails(token: str) -> None:
    raise ValueError(f"no {token}")


def setting() -> str:
    return "secret-setting"


@workflow(name="histories.pays")
async def pays(card: str, decides: str = "") -> dict:
    first, second = await asyncio.gather(charge(card, Decimal("9.99")), charge(f"{card}\0", Decimal(1)))
    logger.info("charged")
    try:
        await fails(first["token"])
    except ActivityError as error:
        message = error.message
    if decides.startswith("secret"):
        await sleep(1)
    kept = side_effect(setting)
    return {"go": await wait_signal("go"), "id": uuid4(), "token": second["token"], "no": message, "kept": kept}


@workflow(name="histories.child")
async def child_of(card: str) -> dict:
    return await charge(card, Decimal(1))


@workflow(name="histories.family")
async def family(card: str) -> dict:
    return await child_of(card)


def as_it_is_now(fn):
    """A workflow of that name whose code has changed."""
    return WorkflowDefinition(fn, name="histories.pays")


async def changed(card: str, decides: str = "") -> dict:
    first, _ = await asyncio.gather(charge(card, Decimal("9.98")), charge(f"{card}\0", Decimal(1)))
    return first


def paid(env, *args):
    run = env.start(pays, *args)
    env.signal(run, "go", {"by": "secret-me"})
    env.wait_run(run)
    return run


@pytest.fixture
def recorded(continuum_env, tmp_path):
    return dump_history(paid(continuum_env, "secret-4711"), tmp_path / "histories" / "paid.json")


def test_a_history_of_the_database_is_dumped_and_replays(transactional_db, tmp_path):
    run = continuum.start(pays, "4711")
    continuum.signal(run, "go", "on")
    run_until_idle()
    path = dump_history(run, tmp_path / "new" / "paid.json")
    assert assert_replays(pays, path) == [path]
    told = json.loads(path.read_text())
    row = continuum.get_run(run)
    assert told["state"] == row.state == "completed"
    assert told["input"] == ["4711"]
    assert told["run"]["id"] == str(run.id)
    assert told["run"]["began_at"] == row.claimed_at.isoformat()
    assert [event["recorded_at"] for event in told["events"]] == [e.recorded_at.isoformat() for e in row.history()]
    charged = next(event for event in told["events"] if event["command_id"] == "0.1:1")
    assert charged["data"]["result"]["price"] == {"~decimal": "9.99"}
    with pytest.raises(AssertionError, match=r"9\.98"):
        assert_replays(as_it_is_now(changed), path)


def test_so_are_those_of_families(transactional_db, tmp_path):
    run = continuum.start(family, "4711")
    run_until_idle()
    child = Run.objects.get(parent_run_id=run.id)
    files = [dump_history(each, tmp_path / f"{each.id}.json") for each in (run, child)]
    assert assert_replays(family, files[0]) == files[:1]
    assert assert_replays("histories.child", files[1]) == files[1:]


def test_a_run_that_is_not_there_or_has_not_begun_has_no_history(transactional_db, tmp_path):
    with pytest.raises(RunNotFoundError):
        dump_history(uuid7(), tmp_path / "a.json")
    with pytest.raises(ValueError, match="has not begun"):
        dump_history(continuum.start(pays, "4711"), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_history_of_memory_is_the_same_every_time(continuum_env, recorded):
    from continuum.testing.environment import Environment

    other = Environment()
    again = dump_history(paid(other, "secret-4711"), recorded.with_name("again.json"))
    other.close()
    assert again.read_text() == recorded.read_text()


def test_each_event_has_a_line_of_its_own(recorded):
    lines = recorded.read_text().splitlines()
    events = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"seq"')]
    assert [event["seq"] for event in events] == list(range(1, 7))
    assert json.loads(recorded.read_text())["events"] == events


def test_tracebacks_are_left_out(recorded):
    assert "no tok-secret-4711" in recorded.read_text()
    assert "Traceback" not in recorded.read_text()


def test_a_run_that_has_not_ended_can_be_dumped_too(continuum_env, tmp_path):
    run = continuum_env.start(pays, "4711")
    path = dump_history(run, tmp_path / "waits.json")
    assert json.loads(path.read_text())["state"] == "suspended"
    assert assert_replays(pays, path) == [path]


def test_a_file_that_is_there_stays_as_it_is(continuum_env, recorded):
    before = recorded.read_text()
    run = continuum_env.start(pays, "other")
    with pytest.raises(FileExistsError):
        dump_history(run, recorded)
    assert recorded.read_text() == before
    dump_history(run, recorded, overwrite=True)
    assert recorded.read_text() != before


class TestReplaying:
    def test_drift_is_told_with_the_file_and_in_the_words_of_the_error(self, recorded):
        with pytest.raises(AssertionError) as caught:
            assert_replays(as_it_is_now(changed), recorded)
        told = str(caught.value)
        assert told.startswith(f"{recorded}: ")
        assert RecordedHistory.read(recorded).identity.id.hex in told.replace("-", "")
        assert "9.99" in told
        assert "9.98" in told
        assert not isinstance(caught.value, ReplayDriftError)

    def test_every_file_that_does_not_replay_is_told(self, continuum_env, recorded):
        other = dump_history(paid(continuum_env, "other"), recorded.with_name("other.json"))
        with pytest.raises(AssertionError) as caught:
            assert_replays(as_it_is_now(changed), [recorded, other])
        assert str(recorded) in str(caught.value)
        assert str(other) in str(caught.value)

    def test_a_folder_is_searched_for_the_workflows_histories(self, continuum_env, recorded):
        @workflow(name="histories.other")
        async def other() -> None: ...

        theirs = dump_history(continuum_env.start(other), recorded.parent / "deeper" / "other.json")
        assert assert_replays(pays, recorded.parent) == [recorded]
        assert assert_replays("histories.other", recorded.parent) == [theirs]
        assert assert_replays(None, recorded.parent) == sorted([recorded, theirs])
        with pytest.raises(ValueError, match=r"is a history of histories\.other, not of histories\.pays"):
            assert_replays(pays, theirs)

    def test_a_workflow_that_is_gone_is_told(self, recorded):
        recorded.write_text(recorded.read_text().replace('"histories.pays"', '"histories.gone"'))
        with pytest.raises(AssertionError, match=r"unknown workflow 'histories\.gone'"):
            assert_replays(None, recorded)

    def test_finding_nothing_proves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match=r"there are no histories of histories\.pays in"):
            assert_replays(pays, tmp_path)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("nonsense", "cannot be read"),
            ("[]", "is no history"),
            ('{"continuum_history": 2}', "of format 2, not 1"),
            ('{"continuum_history": 1}', "is damaged: KeyError"),
        ],
    )
    def test_what_is_no_history_is_refused(self, tmp_path, text, complaint):
        path = tmp_path / "a.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint) as caught:
            assert_replays(pays, path)
        assert str(path) in str(caught.value)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"a\.json cannot be read"):
            assert_replays(pays, tmp_path / "a.json")


class TestRedacting:
    @staticmethod
    def hide(path, value):
        return value.replace("secret", "hidden") if isinstance(value, str) else value

    def test_a_redacted_history_holds_no_secret_and_replays(self, continuum_env, tmp_path):
        run = paid(continuum_env, "secret-4711")
        path = dump_history(run, tmp_path / "paid.json", redact=self.hide)
        assert "secret" not in path.read_text()
        assert path.read_text().count("hidden") > 5
        assert assert_replays(pays, path)
        with pytest.raises(AssertionError, match="hidden-4711"):
            assert_replays(as_it_is_now(changed), path)

    def test_what_is_redacted_is_named_by_its_path(self, continuum_env, tmp_path):
        seen = []
        run = paid(continuum_env, "a")
        dump_history(run, tmp_path / "paid.json", redact=lambda path, value: seen.append(path) or value)
        assert {
            "input[0]",
            "histories.charge.result.token",
            "histories.charge.result.price.~decimal",
            "histories.fails.error.message",
            "setting.result",
            "go.payload.by",
        } <= set(seen)

    def test_a_value_the_workflow_decides_by_cannot_be_replaced_by_any_other(self, continuum_env, tmp_path):
        run = paid(continuum_env, "a", "secret")
        with pytest.raises(ValueError, match=r"goes another way: .*have redact"):
            dump_history(run, tmp_path / "paid.json", redact=self.hide)
        assert list(tmp_path.iterdir()) == []

    def test_the_type_of_a_value_stays(self, continuum_env, tmp_path):
        run = paid(continuum_env, "a")
        with pytest.raises(ValueError, match=r"redact\('input\[0\]', …\) must return str, not None"):
            dump_history(run, tmp_path / "paid.json", redact=lambda path, value: None)

    def test_one_that_was_cancelled_before_it_began_can_be_redacted(self, continuum_env, tmp_path):
        run = continuum_env.start(pays, "a", start_at=continuum_env.now.replace(year=2030))
        continuum_env.cancel(run, reason="secret reason")
        path = dump_history(run, tmp_path / "cancelled.json", redact=self.hide)
        assert "hidden reason" in path.read_text()
        assert assert_replays(pays, path)

    def test_one_that_was_retried_cannot(self, continuum_env, tmp_path):
        @workflow(name="histories.retried")
        async def retried() -> None:
            await charge("a", Decimal(1))

        continuum_env.mock(charge, raises=ValueError)
        run = continuum_env.start(retried)
        continuum_env.unmock(charge)
        continuum_env.retry(run)
        assert run.state == "completed"
        assert assert_replays(retried, dump_history(run, tmp_path / "whole.json"))
        with pytest.raises(ValueError, match="holds run_resumed, run_retried: one that was retried"):
            dump_history(run, tmp_path / "redacted.json", redact=self.hide)
