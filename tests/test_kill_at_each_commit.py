"""A workflow that uses everything there is survives the death of its worker at each commit of its journal.

Right before a commit nothing of it is there; right after it all of it is, and nobody has been told. Whatever a worker
does between two commits, its successor meets one of these two. A sample of the commits is tried, chosen by a seed that
is printed (``KILL_SEED`` gives it); with ``KILL_SWEEP=1`` all of them are.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest

import continuum
from continuum.models import ActivityResult, ActivityTask, HistoryEvent, InboxMessage, Run, Worker
from continuum.worker.journal import Journal
from tests.app.everything_workflows import all_there_is, exports, once
from tests.app.models import Effect
from tests.app.workflows import effect
from tests.waiting_for import eventually
from tests.workers import ROOT, Lineage, worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]

SWEEP = os.environ.get("KILL_SWEEP") == "1"
SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10_000))
SAMPLE = 20

TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Death:
    """Where a worker dies."""

    commit: int
    when: str

    def __str__(self) -> str:
        return f"{self.when} commit {self.commit}"

    @property
    def key(self) -> str:
        return f"{self.when}{self.commit}"


@pytest.fixture
def doomed(subprocess_environment, tmp_path):
    # With a lease that lasts: who loses it, as one may on a busy machine, comes back and does things a third time.
    environment = subprocess_environment | {"DJANGO_SETTINGS_MODULE": "tests.settings_watchful"}
    doomed = Lineage(environment, log=tmp_path / "doomed.log")
    yield doomed
    doomed.close()


def dies(doomed, death, is_over):
    """Run a worker until it dies, or is killed because there is nothing left to do; tell whether it has died."""
    doomed.start("--verbosity", "0", commit=death.commit, when=death.when)
    eventually(lambda: doomed.poll() is not None or is_over(), 30, message=f"a worker that dies {death}")
    died = doomed.poll() is not None
    assert doomed.kill() == -signal.SIGKILL
    return died


def start(key):
    run = continuum.start(all_there_is, key)
    for word in ("one", "two"):
        continuum.signal(run, "answer", word)
    return run


def release_listeners(key):
    """Have the children end that nobody awaits, and wait for that."""
    for child in Run.objects.filter(workflow__endswith="listens_once").exclude(state__in=TERMINAL):
        continuum.signal(child, "word", "bye")
    eventually(lambda: not Run.objects.exclude(state__in=TERMINAL).exists(), 30, message="all runs end")


def told(result):
    """What must be the same, however often the worker died: all but what was drawn."""
    return result[::2]


def unkilled():
    """Run the workflow once, and return its result and how many commits it took."""
    commits = Counter()
    execute = Journal._execute

    async def counted(self, connection, batch):
        commits["all"] += 1
        return await execute(self, connection, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_execute", counted)
        with worker():
            result = continuum.result(start("unkilled"), timeout=30)
            count = commits["all"]
            release_listeners("unkilled")
    check("unkilled", result, result)
    return result, count


def check(key, result, expected):
    """What must hold of a run, whatever happened to its workers."""
    assert told(result) == told(expected)
    effects = Counter(Effect.objects.filter(key__startswith=f"{key}:").values_list("key", flat=True))
    recorded = recorded_effects(key)
    attempts = {f"{key}:{n}:{kind}:{a}" for n in (1, 2) for kind in ("flaky", "flaky queued") for a in (1, 2, 3)}
    assert effects.keys() == recorded.keys() | attempts
    assert set(recorded.values()) == {1}, "each effect is recorded once"
    for round, draws in enumerate(result[1::2], 1):
        assert effects[f"{key}:{round}:last:{draws['drawn']}:{draws['token']}"] >= 1
        assert effects[f"{key}:{round}:unbooked"] >= 1
        for kind in ("paid", "queued", "reserved", "released"):
            assert effects[f"{key}:{round}:once:{kind}"] == 1
    # A worker dies once, so what was under way then ran twice at most.
    assert max(effects.values()) <= 2
    runs = Run.objects.all()
    assert sorted(Counter(runs.values_list("state", flat=True)).items()) == [("completed", 6), ("failed", 2)]
    assert not runs.filter(owner_id__isnull=False).exists()
    for run in runs:
        history = list(run.history())
        assert [event.seq for event in history] == list(range(1, len(history) + 1))
        ends = [event.type for event in history if event.type in ENDS]
        assert ends == [history[-1].type]
        answered = [event.command_id for event in history if event.command_id and event.type != "activity_retried"]
        assert len(answered) == len(set(answered)), "nothing is answered twice"
    assert not InboxMessage.objects.filter(consumed_at__isnull=True).exists()
    assert not ActivityTask.objects.exists()


ENDS = ("run_completed", "run_continued", "run_failed", "run_cancelled")


def recorded_effects(key):
    return Counter(
        event.data["result"]
        for run in Run.objects.all()
        for event in run.history()
        if event.type == "activity_completed" and event.name in (effect.name, once.name, exports.name)
    )


def clear():
    for model in (Effect, HistoryEvent, InboxMessage, ActivityTask, ActivityResult, Run, Worker):
        model.objects.all().delete()


def test_a_worker_may_die_at_any_commit(doomed, settings):
    settings.CONTINUUM = {"POLL_INTERVAL": 0.2}  # so often does the next one look for the dead
    expected, commits = unkilled()
    deaths = [Death(commit, when) for commit in range(1, commits + 1) for when in ("before", "after")]
    if not SWEEP:
        deaths = random.Random(SEED).sample(deaths, min(SAMPLE, len(deaths)))
    print(f"{commits} commits; KILL_SEED={SEED}; {len(deaths)} deaths: {', '.join(map(str, deaths))}")
    died = 0
    for death in deaths:
        clear()
        run = start(death.key)
        try:
            died += dies(doomed, death, lambda run=run: ended(run))
            with worker():
                result = continuum.result(run, timeout=30)
                release_listeners(death.key)
            check(death.key, result, expected)
        except BaseException as error:
            error.add_note(f"after a death {death} (KILL_SEED={SEED})")
            raise
    # How steps are grouped into commits is a matter of timing, so that the last numbers may not be reached.
    assert died >= len(deaths) * 0.7


def ended(run):
    """Whether a run, or what continued it, has ended."""
    row = continuum.get_run(run)
    while row.continued_to_run_id is not None:
        row = continuum.get_run(row.continued_to_run_id)
    return row.is_terminal


def test_the_command_line_of_the_harness(subprocess_environment):
    """By hand: ``python -m tests.kill_at_commit`` is a worker that dies where it is told to."""
    run = continuum.start(all_there_is, "by hand")
    command = [
        sys.executable,
        "-m",
        "tests.kill_at_commit",
        "--commit",
        "1",
        "--when",
        "before",
        "--",
        "--verbosity",
        "0",
    ]
    assert subprocess.run(command, env=subprocess_environment, cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    assert not HistoryEvent.objects.exists()
    assert continuum.get_run(run).owner_id is not None
