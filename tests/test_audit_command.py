"""``manage.py continuum_audit``: what it prints, in which form, and how it exits."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.core.management.color import no_style
from django.db import connections

from continuum import activity, patched, sleep, workflow
from continuum.audit import audit
from continuum.audit.proofs import prove_live_histories
from continuum.core.registry import registry
from continuum.management import audit_text
from continuum.management.commands import continuum_audit as module
from continuum.models import ActivityTask, WorkflowVersion
from tests.factories import HistoryEventFactory, RunFactory, WorkerFactory

ROOT = Path(__file__).parent.parent
OLD = "0123456789abcdef"
A_WHILE_AGO = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def only_the_tests_own_workflows(monkeypatch):
    monkeypatch.setattr(registry, "_workflows", {})


@activity(name="test_audit_command.pack")
def pack() -> None: ...


@pytest.fixture
def sell():
    @workflow(name="shop.sell")
    async def sell() -> None:
        if patched("tax"):
            await sleep(2)
        await sleep(1)

    return sell


@pytest.fixture
def everything(db, sell):
    """Something of everything an audit can find."""

    @workflow(name="shop.ship")
    async def ship() -> None:
        await pack()

    worker = WorkerFactory(name="elder", workflows={"shop.sell": {OLD: 1}})
    WorkerFactory(name="silent", workflows=None)
    run = RunFactory(workflow="shop.sell", version_hash=OLD, state="suspended", claimed_at=A_WHILE_AGO, input=[])
    RunFactory(workflow="shop.gone", version_hash=OLD)
    error = {"type": "ReplayDriftError", "message": "first line\nsecond line", "traceback": "", "details": None}
    RunFactory(workflow="shop.sell", version_hash=OLD, state="stuck_unknown_version", error=error, input=[])
    HistoryEventFactory(run=run, seq=1, data={"args": []}, command_id="0:1", name="shop.charge")
    dead = WorkerFactory(name="dead", state="dead", stopped_at=A_WHILE_AGO)
    ActivityTask.objects.create(
        run_id=uuid4(),
        command_id="0:1",
        activity="mail.send",
        queue="mail",
        args=[],
        owner_id=dead.id,
        state="running",
        claimed_at=A_WHILE_AGO,
    )
    WorkflowVersion.objects.create(workflow="shop.ship", version=1, version_hash=ship.version_hash)
    return worker


def command(*arguments):
    """Run the command; returns what it wrote and how it exited."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    try:
        call_command("continuum_audit", *arguments, stdout=out, stderr=err, no_color=True)
    except SystemExit as exit_:
        status = exit_.code
    return out.getvalue(), err.getvalue(), status


def text(width=100, **options):
    return list(audit_text.audit_lines(audit(**options), no_style(), width))


# How it exits


@pytest.mark.django_db
def test_without_strict_whatever_is_found_is_fine(everything):
    assert command()[2] == 0
    assert command("--format=json")[2] == 0


@pytest.mark.django_db
def test_strict_exits_with_1_on_a_failure_and_with_0_without(sell):
    assert command("--strict")[2] == 1  # the site is safe to remove
    worker = WorkerFactory(workflows={"shop.sell": {OLD: 1}})
    assert command("--strict")[2] == 0
    RunFactory(workflow="shop.gone", version_hash=OLD)
    assert command("--strict")[2] == 1
    worker.delete()


def test_strict_says_why_beside_the_json(everything):
    out, err, status = command("--strict", "--format=json")
    assert status == 1
    assert err.strip().splitlines() == json.loads(out)["failures"]


def test_a_failed_proof_fails_only_where_it_was_asked_for(everything):
    strict = json.loads(command("--format=json")[0])["failures"]
    assert not [failure for failure in strict if "replayed" in failure]
    out, _, status = command("--format=json", "--replay", "--strict")
    assert "1 history not replayed by the code at hand" in json.loads(out)["failures"]
    assert status == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format=xml"], "invalid choice: 'xml'"),
        (["--limit=0"], "'0' is not a whole number, 1 or more"),
        (["--replay-sample=x"], "'x' is not a whole number, 1 or more"),
        (["--database=nowhere"], "There is no database 'nowhere': DATABASES has 'default'"),
    ],
)
def test_wrong_usage_is_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(CommandError, match=re.escape(sentence)) as refused:
        command(*arguments)
    assert refused.value.returncode in (1, 2)


def run_process(*arguments, environment):
    return subprocess.run(
        [sys.executable, "-m", "django", "continuum_audit", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.django_db(transaction=True)
def test_from_the_command_line_wrong_usage_is_2(subprocess_environment):
    done = run_process("--database=nowhere", environment=subprocess_environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no database 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_cannot_be_reached_is_told_in_a_sentence(subprocess_environment):
    environment = subprocess_environment | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    done = run_process(environment=environment)
    assert done.returncode == 1
    assert "The database 'default' cannot be used: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.django_db(transaction=True)
def test_missing_tables_are_told_in_a_sentence():
    with connections["default"].cursor() as cursor:
        cursor.execute("ALTER TABLE continuum_workflow_versions RENAME TO continuum_elsewhere")
        try:
            with pytest.raises(CommandError, match="migrate continuum"):
                command()
        finally:
            cursor.execute("ALTER TABLE continuum_elsewhere RENAME TO continuum_workflow_versions")


@pytest.mark.django_db
def test_a_wrong_setting_is_told_in_a_sentence(settings):
    settings.CONTINUUM = {"VERSION_POLICY": "perhaps"}
    with pytest.raises(CommandError, match="VERSION_POLICY"):
        command()


# JSON


def shape(value):
    """Return the keys of JSON, all the way down; of a list those of its first entry, and of ``skipped`` none."""
    if isinstance(value, dict):
        return {key: None if key == "skipped" else shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None


def documented():
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return json.loads(block)


def test_json_has_the_documented_keys_in_their_order(everything):
    out, _, _ = command("--format=json", "--replay")
    found, promised = json.loads(out), documented()
    found["workflows"].sort(key=lambda each: not each["patch_sites"])
    assert shape(found) == shape(promised)
    assert list(found) == list(promised)


@pytest.mark.django_db
def test_json_always_has_the_keys_of_the_whole():
    out, _, _ = command("--format=json")
    assert list(json.loads(out)) == list(documented())
    assert json.loads(out)["replay"] is None


def test_json_says_what_was_found(everything):
    found = json.loads(command("--format=json", "--replay")[0])
    assert found["active_runs"] == 3
    assert found["workflows"][0]["patch_sites"][0]["verdict"] == "still-in-use"
    assert [each["workflow"] for each in found["unloaded_versions"]] == ["shop.gone", "shop.sell"]
    assert found["stuck_unknown_version_runs"][0]["reason"] == "first line\nsecond line"
    assert found["expired_activity_claims"][0]["since"] == "2026-01-02T03:04:05+00:00"
    assert (found["replay"]["proved"], found["replay"]["drifted"]) == (1, 1)
    assert found["replay"]["skipped"] == {"not_loaded": 1}


def test_a_sample_is_a_replay(everything):
    assert json.loads(command("--format=json", "--replay-sample=1")[0])["replay"]["sample"] == 1


def test_the_skipped_reasons_are_all_documented():
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    assert [reason for reason in audit_text._SKIPPED if f"`{reason}`" not in page] == []


# Text


def test_text_names_every_finding(everything):
    out, _, _ = command("--replay")
    flat = " ".join(out.split())
    for words in (
        "3 active runs in 'default', 2 live workers",
        "still-in-use patched('tax') at tests/test_audit_command.py:",
        "1 active run may need the old branch; no worker has it yet",
        "silent: does not tell what it has loaded",
        f"shop.sell version 1 ({OLD}): on 1 live worker, not loaded here",
        "loaded here, and never by a worker",
        "loaded here, on no live worker now",
        f"not adoptable shop.gone version 1 ({OLD}): 1 active run, on no live workers; the workflow is not loaded",
        f"adoptable shop.sell version 1 ({OLD}): 2 active runs, on 1 live worker; such as",
        f"namespace default, of shop.sell version 1 ({OLD}) first line second line",
        "mail.send in queue 'mail'",
        "with dead, gone since 2026-01-02 03:04 UTC",
        "1 history replayed by the code here",
        "1 history not replayed by it",
        "1 history not tried: of workflows that are not loaded here",
        "ReplayDriftError",
        "1 run stuck: code and history do not fit",
    ):
        assert words in flat, words


@pytest.mark.django_db
def test_a_section_without_findings_takes_one_line():
    WorkerFactory(workflows={})

    @workflow(name="shop.ship")
    async def ship() -> None: ...

    lines = text()
    titles = [index for index, line in enumerate(lines) if line and not line.startswith(" ")][1:]
    assert [lines[index] for index in titles] == [
        "Workflows loaded here",
        "Code on the workers",
        "Active runs of code that is not loaded here",
        "Stuck runs",
        "Activities claimed by workers that are gone",
        "Replay",
        "Strict",
    ]
    assert {after - before for before, after in zip(titles, [*titles[1:], len(lines) + 1], strict=True)} == {3}


@pytest.mark.parametrize("width", [80, 120])
def test_text_keeps_to_the_width(everything, width):
    replay = prove_live_histories("default")
    assert replay.drifted
    assert [line for line in text(width, replay=replay) if len(line) > width] == []


def test_colours_are_djangos_and_none_without(everything):
    out = io.StringIO()
    call_command("continuum_audit", stdout=out, force_color=True)
    assert "\x1b[" in out.getvalue()
    assert "\x1b[" not in command()[0]


def test_nothing_from_the_database_steers_the_terminal(everything):
    error = {"type": "E", "message": "\x1b[2Jgone\n  \x1b[2Jtoo", "traceback": "", "details": ["\x1b[2J"]}
    RunFactory(
        workflow="shop.\x1b[2Jsell", namespace="\x1b[2J", state="stuck_unknown_version", error=error, version_hash=OLD
    )
    out, _, _ = command()
    assert "[2Jgone" in out
    assert "[2Jtoo" in out
    assert "\x1b" not in out


@pytest.mark.django_db
def test_a_replay_of_nothing_says_so(sell):
    out, _, _ = command("--replay")
    assert "no active run, and so no history" in out


def test_drifts_that_are_alike_are_told_once(db, sell):
    for _ in range(3):
        run = RunFactory(workflow="shop.sell", version_hash=OLD, state="suspended", claimed_at=A_WHILE_AGO, input=[])
        HistoryEventFactory(run=run, seq=1, data={"args": []}, command_id="0:1", name="shop.charge")
    out, _, _ = command("--replay")
    assert out.count("ReplayDriftError") == 1
    assert "and 2 more like it, such as" in out


def test_what_is_not_listed_is_counted(everything):
    RunFactory(workflow="shop.sell", version_hash=OLD, state="stuck_unknown_version", input=[])
    out, _, _ = command("--limit=1")
    assert "and 1 more: --limit says how many are listed" in out


# The progress bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("terminal", "expected"), [(Terminal, True), (io.StringIO, False)])
def test_a_bar_is_shown_on_a_terminal_only(everything, terminal, expected, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            self.n = 0

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def update(self, by):
            self.n += by
            shown.append((self.n, self.total))

    monkeypatch.setattr(module, "tqdm", Bar)
    call_command("continuum_audit", "--replay", stdout=io.StringIO(), stderr=terminal())
    assert shown == ([(2, 2)] if expected else [])


def test_without_tqdm_there_is_no_bar(everything, monkeypatch):
    monkeypatch.setattr(module, "tqdm", None)
    call_command("continuum_audit", "--replay", stdout=io.StringIO(), stderr=Terminal())
