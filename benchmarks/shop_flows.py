"""The workflows whose runs ``filling`` makes, so that those runs can be shown, audited and replayed."""

from __future__ import annotations

from typing import Any

from benchmarks.filling import RARE_WORKFLOW, WORKFLOWS
from benchmarks.live_runs import STEPS
from continuum import activity, sleep, wait_signal, workflow

__all__ = ["deliver", "flow", "steps"]


def step(number: int) -> int:
    """Do nothing."""
    return number


steps = [activity(name=f"shop.activities.step_{place}")(step) for place in range(STEPS)]


@activity(name="shop.activities.deliver", queue="mail")
def deliver(order: str) -> None:
    """Do nothing."""


@workflow(name="shop.workflows.flow")
async def flow(order: dict[str, Any]) -> dict[str, str]:
    """Take steps, then wait for what the order says."""
    for number in range(1, order["steps"] + 1):
        await steps[number % STEPS](number)
    if order["waits"] == "timer":
        await sleep(30 * 86_400)
    elif order["waits"] == "activity":
        await deliver(order["id"])
    else:
        await wait_signal("fraud_review")
    return {"state": "shipped"}


for name in (*WORKFLOWS, RARE_WORKFLOW):
    workflow(name=name)(flow.fn)
