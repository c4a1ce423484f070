"""Worker processes with different versions of the same workflow, alive at the same time in one database."""

from __future__ import annotations

import importlib.util
import signal
import sys

import pytest
from django.db import connection

import continuum
from continuum.core.definitions import registry
from continuum.models import Run
from tests.versions import history_of, row_of
from tests.waiting_for import eventually
from tests.workers import ProcessWorker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]

MODULE = """
from continuum import activity, wait_signal, workflow


@activity(name="rolling.step")
def step(number: int) -> int:
    return number


@workflow(name="rolling.flow")
async def flow():
{body}


@workflow(name="rolling.quick")
async def quick(number: int) -> int:
    return await step(number)
"""

FIRST = """
    await step(1)
    await wait_signal("go")
    return "first"
"""
# Does not fit what the first has done.
BROKEN = """
    await step(9)
    await wait_signal("go")
    return "broken"
"""
ALSO_BROKEN = """
    await step(8)
    await wait_signal("go")
    return "also broken"
"""
# Fits, and does more.
MENDED = """
    await step(1)
    await wait_signal("go")
    await step(2)
    return "mended"
"""
SETTINGS = """
from tests.settings import *  # noqa: F403

CONTINUUM = {"WORKFLOW_MODULES": ["rolling_flows"], "POLL_INTERVAL": 0.2}
"""


@pytest.fixture
def deploy(tmp_path, subprocess_environment):
    """Start a worker process with this body of the workflow."""
    workers = []

    def deploy(body):
        folder = tmp_path / f"deploy{len(workers)}"
        folder.mkdir()
        (folder / "rolling_flows.py").write_text(MODULE.format(body=body.strip("\n")))
        (folder / "rolling_settings.py").write_text(SETTINGS)
        environment = subprocess_environment | {"DJANGO_SETTINGS_MODULE": "rolling_settings"}
        started = ProcessWorker(environment, log=folder / "log", cwd=folder)
        workers.append(started)
        return started

    yield deploy
    for started in workers:
        started.close()


@pytest.fixture
def flows(tmp_path, monkeypatch):
    """The first version, as the process has it that starts runs."""
    monkeypatch.setattr(registry, "_workflows", dict(registry._workflows))
    monkeypatch.setattr(registry, "_activities", dict(registry._activities))
    path = tmp_path / "rolling_flows.py"
    path.write_text(MODULE.format(body=FIRST.strip("\n")))
    spec = importlib.util.spec_from_file_location("rolling_flows", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rolling_flows", module)
    spec.loader.exec_module(module)
    return module


def stand(worker):
    worker.send(signal.SIGTERM)
    assert worker.wait(60) == 0


def begun(flows, first, count=1):
    """Runs that wait for their signal, with the first step in their histories; their worker has left."""
    runs = [continuum.start(flows.flow) for _ in range(count)]
    eventually(lambda: Run.objects.filter(state="suspended").count() == count, 60)
    stand(first)
    return runs


def adoptions():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT run_id, count(*) FROM continuum_events WHERE type = 'version_adopted' GROUP BY 1 ORDER BY 2 DESC"
        )
        return [count for _, count in cursor.fetchall()]


def test_a_run_that_drifts_on_one_version_goes_on_with_another_that_is_alive(deploy, flows):
    [run] = begun(flows, deploy(FIRST))
    broken, mended = deploy(BROKEN), deploy(MENDED)
    eventually(lambda: continuum.result(continuum.start(flows.quick, 1), timeout=60) == 1)
    continuum.signal(run, "go")
    assert continuum.result(run, timeout=60) == "mended"
    assert (broken.process.poll(), mended.process.poll()) == (None, None)
    assert history_of(run).count("version_adopted") == 1


def test_one_that_drifts_on_all_of_them_is_left_in_peace_until_the_code_is_mended(deploy, flows):
    [run] = begun(flows, deploy(FIRST))
    deploy(BROKEN), deploy(ALSO_BROKEN)
    continuum.signal(run, "go")
    eventually(lambda: len(row_of(run).tried_versions.split()) == 2, 60)
    eventually(lambda: row_of(run).state == "stuck_unknown_version")
    token = row_of(run).lease_token
    for number in range(10):  # both look for work all the while
        assert continuum.result(continuum.start(flows.quick, number), timeout=60) == number
    row = row_of(run)
    assert (row.state, row.lease_token) == ("stuck_unknown_version", token)
    assert "argument 1 (number): 1 in the history" in row.error["message"]
    deploy(MENDED)
    assert continuum.result(run, timeout=60) == "mended"


def test_a_rolling_deploy_adopts_each_run_once_at_most(deploy, flows):
    old = [deploy(FIRST), deploy(FIRST)]
    runs = [continuum.start(flows.flow) for _ in range(60)]
    eventually(lambda: Run.objects.filter(state="suspended").count() == 60, 60)
    new = deploy(MENDED)
    for run in runs[:20]:
        continuum.signal(run, "go")
    # They are the old workers' runs: whoever has them now, they end as they began.
    assert {continuum.result(run, timeout=60) for run in runs[:20]} == {"first"}
    stand(old[0])
    for run in runs[20:40]:
        continuum.signal(run, "go")
    assert {continuum.result(run, timeout=60) for run in runs[20:40]} <= {"first", "mended"}
    stand(old[1])
    for run in runs[40:]:
        continuum.signal(run, "go")
    assert {continuum.result(run, timeout=60) for run in runs[40:]} == {"mended"}
    assert set(adoptions()) == {1}
    assert new.process.poll() is None
