"""Workflows that depend on what no history holds."""

from __future__ import annotations

import random

from continuum import activity, wait_signal, workflow

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


@activity
def says(what: str) -> str:
    return what


@workflow
async def asks_by_lot() -> str:
    await says("before")
    said = await says(str(random.random()))  # continuum: allow[D102] it shall be found out
    return said + await wait_signal("go")


async def asks_as_before() -> str:
    """The same, mended."""
    await says("before")
    return await says("mended") + await wait_signal("go")


@workflow
async def says_in_the_order_of_a_set() -> list[str]:
    return [await says(word) for word in set(WORDS)]  # continuum: allow[D601] it shall be found out


@workflow
async def says_in_order() -> list[str]:
    return [await says(word) for word in sorted(set(WORDS))]


@workflow
async def says_all_of_a_set() -> str:
    await wait_signal("go")
    return await says(" ".join({word.upper() for word in WORDS}))  # continuum: allow[D601] it shall be found out
