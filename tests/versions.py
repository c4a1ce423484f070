"""Versions of one workflow's code, and workers that have loaded one or the other."""

from __future__ import annotations

from contextlib import contextmanager

from django.db import connection

import continuum
from continuum import activity, run_info, side_effect, wait_signal
from continuum.core.definitions import WorkflowDefinition, registry
from continuum.models import Run

__all__ = [
    "NAME",
    "deployed",
    "extended",
    "history_of",
    "longer",
    "other",
    "parked",
    "plain",
    "row_of",
    "step",
    "unlike",
    "version",
]

NAME = "tests.versions.flow"


@activity(name="tests.versions.step")
def step(what: str, number: int) -> str:
    return f"{what}{number}"


def noted() -> int:
    return 7


async def plain(order: str):
    first = await step(order, 1)
    go = await wait_signal("go")
    return [first, go, run_info().version]


async def extended(order: str):
    first = await step(order, 1)
    go = await wait_signal("go")
    return [first, go, run_info().version, await step(order, 2)]


async def longer(order: str):
    await step(order, 0)
    first = await step(order, 1)
    return [first, await wait_signal("go")]


async def other(order: str):
    return [await step(order, 8), await wait_signal("go")]


async def unlike(order: str):
    value = side_effect(noted)
    return [value, await wait_signal("go")]


def version(fn, number=1, name=NAME):
    return WorkflowDefinition(fn, name=name, version=number)


@contextmanager
def deployed(*definitions):
    """These versions are all the code there is in this process."""
    before = registry._workflows
    registry._workflows = {}
    try:
        for definition in definitions:
            registry._workflows.setdefault(definition.name, {})[definition.version] = definition
        yield
    finally:
        registry._workflows = before


def row_of(run) -> Run:
    return continuum.get_run(run)


def history_of(run) -> list[str]:
    return [event.type for event in row_of(run).history()]


def parked(workflow=NAME, number=1, version_hash="h", tried="", count=1):
    """Insert parked runs."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_runs (id, correlation_id, workflow, version, version_hash, state, tried_versions)"
            " SELECT gen_random_uuid(), gen_random_uuid(), %s, %s, %s, 'stuck_unknown_version', %s"
            " FROM generate_series(1, %s)",
            [workflow, number, version_hash, tried, count],
        )
