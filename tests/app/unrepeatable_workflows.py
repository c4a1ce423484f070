"""Workflows that depend on what no history holds, as long as they are not mended."""

from __future__ import annotations

import random

from continuum import activity, wait_signal, workflow

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
mended = False


@activity
def says(what: str) -> str:
    return what


@workflow
async def asks_by_lot() -> str:
    await says("before")
    said = await says("mended" if mended else str(random.random()))  # continuum: allow[D102] it shall be found out
    return said + await wait_signal("go")


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
