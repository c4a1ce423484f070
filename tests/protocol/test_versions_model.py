"""Several versions at work at once: every run goes on in the end, is tried once by each, and does not go to and fro."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from tests.protocol.search import Result, explore
from tests.protocol.versions import Rules, Setup, finished, initial, steps, wrong

# c fits what a has done and b has not; b fits nothing that a or c has done.
APART = (("a", "ac"), ("b", "b"), ("c", "ac"))
ALIKE = (("a", "abc"), ("b", "abc"), ("c", "abc"))
ROLLING = ("+a", "+a", "+c", "-0", "+c", "-1")

ROLLED = Setup(fits=ALIKE, deploys=ROLLING, kills=1)
BROKEN_FIRST = Setup(fits=APART, deploys=("+a", "+b", "-0", "+c"), kills=0)
SETUPS = {
    "a rolling deploy of code that fits": ROLLED,
    "two runs of two versions": Setup(("a", "c"), ALIKE, ("+a", "+c", "-0", "+c"), kills=1),
    "a broken deploy, and one that is mended": BROKEN_FIRST,
    "the same, and workers die": replace(BROKEN_FIRST, deploys=("+a", "+b", "-0", "+c", "+c", "+b"), kills=1),
    "clients are deployed before workers": Setup(("c",), ALIKE, ("+a", "+c")),
    "a rollback": Setup(("c",), APART, ("+c", "+a", "-0")),
    "nobody has the code for a while": Setup(fits=ALIKE, deploys=("+a", "-0", "+c")),
    "pinned": Setup(("a", "c"), ALIKE, ("+a", "+c"), pin=True),
    "pinned, and its code comes back": Setup(("a",), ALIKE, ("+a", "+c", "-0", "+a"), pin=True),
}


@cache
def searched(setup: Setup) -> Result:
    return explore(
        initial(setup),
        lambda state: steps(setup, state),
        wrong=lambda state: wrong(setup, state),
        goal=lambda state: finished(setup, state),
        most=100_000,
    )


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_every_run_goes_on_in_the_end(setup):
    result = searched(setup)
    assert not result.wrong, result
    assert result.goals


HOPELESS = "nothing that may be counted on leads to the goal"
MUTANTS = {
    "the memory of what was tried": (Rules(tries_remembered=False), BROKEN_FIRST, "is tried again with a version"),
    "the look of live workers for parked runs": (Rules(parked_claimed=False), BROKEN_FIRST, HOPELESS),
    "the look for runs that were never tried": (
        Rules(untried_claimed=False),
        Setup(fits=ALIKE, deploys=("+a", "-0", "+c")),
        HOPELESS,
    ),
    "the look at the hash, with pin": (
        Rules(pinned_claims=False),
        SETUPS["pinned"],
        "is run by another version than its own",
    ),
    "leaving a run to its own code first": (
        Rules(own_code_first=False),
        Setup(fits=ALIKE, deploys=("+a", "+c"), releases=3),
        "goes to and fro",
    ),
}


@pytest.mark.parametrize(("rules", "setup", "what"), MUTANTS.values(), ids=MUTANTS.keys())
def test_leaving_out_a_precaution_is_found(rules, setup, what):
    result = searched(replace(setup, rules=rules))
    assert what in result.wrong, result


def test_all_that_may_happen_does_happen():
    happened = {"".join(c for c in label if not c.isdigit()) for s in SETUPS.values() for label in searched(s).labels}
    for what in (
        "clock: r has waited for long",
        "maintenance: nobody has the code of r",
        "w: r drifts on b",
        "w: r is adopted by c",
        "w: gives r back",
        "w: is killed",
        "w: takes up r",
        "deploy: w leaves",
    ):
        assert what in happened, sorted(happened)
