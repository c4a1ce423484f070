"""The protocol holds in every state that small set-ups can get into; without any one of its precautions it does not.

``pytest -s -k leaving_out tests/protocol`` prints the shortest way to each failure.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from tests.protocol.model import finished, initial, steps, wrong
from tests.protocol.search import Result, Step, explore
from tests.protocol.states import CANCEL, Rules, Setup

ONE = Setup()
TWO_MESSAGES = Setup(needs=(2,), sends=((0, "a"), (0, "b")))
CANCELLED = Setup(needs=(2,), sends=((0, "a"), (0, CANCEL)))
CANCELLED_FIRST = Setup(sends=((0, CANCEL), (0, "a")))
TIMER = Setup(timers=(True,))
TWO_RUNS = Setup(needs=(1, 1), timers=(False, False), sends=((0, "a"), (1, "b")))
FAMILY = Setup(needs=(1, 1), timers=(False, False), sends=((1, "a"),), parent=0)

SETUPS = {
    "two messages, a kill, a broken commit": replace(TWO_MESSAGES, kills=1, cuts=1),
    "two messages, a worker stopped": replace(TWO_MESSAGES, stops=1),
    "a commit broken twice": replace(ONE, cuts=2),
    "a worker stopped, a broken commit": replace(ONE, stops=1, cuts=1),
    "a kill, a broken claim": replace(ONE, kills=1, claim_cuts=1),
    "a broken commit, a broken claim": replace(ONE, cuts=1, claim_cuts=1),
    "a worker that only looks dead, a broken commit": replace(ONE, unlocks=1, cuts=1),
    "a timer, a worker that only looks dead": replace(TIMER, unlocks=1),
    "a timer, a kill": replace(TIMER, kills=1),
    "a timer, a broken commit": replace(TIMER, cuts=1),
    "a timer, a hand-over": replace(TIMER, drains=1),
    "a hand-over, a broken commit": replace(ONE, drains=1, cuts=1),
    "a hand-over, a worker that only looks dead": replace(ONE, drains=1, unlocks=1),
    "a cancel, a kill": replace(CANCELLED, kills=1),
    "a cancel before all else, a kill, a broken claim": replace(CANCELLED_FIRST, kills=1, claim_cuts=1),
    "two runs, a kill": replace(TWO_RUNS, kills=1),
    "a child, a kill": replace(FAMILY, kills=1),
    "a child, a broken commit": replace(FAMILY, cuts=1),
    "three workers, two kills": replace(ONE, workers=3, kills=2),
    "hints, a kill": replace(ONE, hints=True, kills=1),
    "hints, a timer": replace(TIMER, hints=True),
    "hints, a child": replace(FAMILY, hints=True),
    "hints that are never lost, and no poll": replace(
        TWO_MESSAGES, hints=True, losses=False, rules=Rules(polled=False)
    ),
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
def test_whatever_happens_nothing_is_lost_doubled_or_stuck(setup):
    result = searched(setup)
    assert not result.wrong, result
    assert result.goals


CHANGED_HANDS = "has changed hands since it was claimed"
HOPELESS = "nothing that may be counted on leads to the goal"

# What is left out; where; what goes wrong; and a step without which it would not.
MUTANTS = {
    "the comparison of tokens": (
        Rules(token_compared=False),
        replace(ONE, cuts=1),
        CHANGED_HANDS,
        "the answer to its commit is lost",
    ),
    "the comparison of tokens when the row has changed meanwhile": (
        Rules(token_compared_again=False),
        replace(ONE, cuts=1),
        CHANGED_HANDS,
        "left-behind statement writes",
    ),
    "all comparison of who holds a run": (
        Rules(token_compared=False, owner_compared=False),
        replace(ONE, cuts=1),
        CHANGED_HANDS,
        "the answer to its commit is lost",
    ),
    "the look at the lease": (
        Rules(lease_checked=False, lease_locked=False),
        replace(ONE, stops=1),
        CHANGED_HANDS,
        "its lease runs out",
    ),
    "the lock on the lease": (
        Rules(lease_locked=False),
        replace(ONE, unlocks=1),
        CHANGED_HANDS,
        "declares w0 dead",
    ),
    "the state of the lease, which is locked only": (
        Rules(lease_checked=False),
        replace(ONE, stops=1),
        CHANGED_HANDS,
        "declares w0 dead",
    ),
    "a new token at a claim": (
        Rules(claim_draws_token=False),
        replace(ONE, cuts=1),
        CHANGED_HANDS,
        "the answer to its commit is lost",
    ),
    "declaring a worker dead before its runs are freed": (
        Rules(dead_before_freed=False),
        replace(ONE, stops=1),
        CHANGED_HANDS,
        "frees r0 of w0",
    ),
    "the sweep for runs whose declarer died": (
        Rules(stranded_freed=False),
        replace(ONE, workers=3, kills=2),
        HOPELESS,
        "declares w0 dead",
    ),
    "the predicate of mail, for a flag": (
        Rules(mail_by_predicate=False),
        ONE,
        HOPELESS,
        "gives r0 back",
    ),
    "consuming in the commit, for before it": (
        Rules(consumed="before"),
        replace(ONE, kills=1),
        "a message is lost",
        "reads history and mail",
    ),
    "consuming in the commit, for after it": (
        Rules(consumed="after"),
        replace(TWO_MESSAGES, kills=1),
        "a message was consumed twice",
        "statement writes r0",
    ),
    "the memory of what was read": (
        Rules(seen_remembered=False),
        TWO_MESSAGES,
        "a message was consumed twice",
        "reads r0's mail",
    ),
    "the question whether a broken commit has landed": (
        Rules(landed_asked=False),
        replace(TWO_MESSAGES, cuts=1),
        "record is refused: its place is taken",
        "the answer to its commit is lost",
    ),
    "the same question, answered by hope": (
        Rules(landed_assumed=True),
        replace(TWO_MESSAGES, cuts=1),
        "a gap in a history",
        "the journal's connection breaks",
    ),
    "one statement for history and row": (
        Rules(one_statement=False),
        ONE,
        "a run's row and its history disagree",
        "statement writes r0 [] end",
    ),
    "the poll, while hints get lost": (
        Rules(polled=False),
        replace(ONE, hints=True),
        HOPELESS,
        "is lost",
    ),
    "the look for runs claimed unknowingly": (
        Rules(strangers_looked_for="never"),
        replace(ONE, claim_cuts=1),
        HOPELESS,
        "the answer to its claim is lost",
    ),
    "all such looks but the first": (
        Rules(strangers_looked_for="once"),
        replace(ONE, claim_cuts=1),
        HOPELESS,
        "a claim left behind by w0 takes r0",
    ),
}


@pytest.mark.parametrize(("rules", "setup", "what", "because"), MUTANTS.values(), ids=MUTANTS.keys())
def test_leaving_out_a_precaution_is_found(rules, setup, what, because):
    assert not searched(setup).wrong, "it goes wrong with all precautions too"
    result = searched(replace(setup, rules=rules))
    print(f"\n{result}")
    assert what in result.wrong, result
    assert any(because in label for label in result.trace), result


@pytest.mark.parametrize("rules", [Rules(owner_compared=False), Rules(freeing_draws_token=False)])
def test_either_of_two_precautions_suffices_where_both_are_taken(rules):
    for setup in (replace(TWO_MESSAGES, cuts=1), replace(ONE, unlocks=1), replace(ONE, kills=1, cuts=1)):
        assert not searched(replace(setup, rules=rules)).wrong


def test_all_that_may_happen_does_happen():
    happened = {re.sub(r"\d+", "#", label) for setup in SETUPS.values() for label in searched(setup).labels}
    for what in (
        "client: r# has ended, 'a' is not sent",
        "clock: the time of r#'s timer comes",
        "hint: one for w# is lost",
        "server: a claim left behind by w# takes r#",
        "server: w#'s left-behind statement is aborted",
        "server: w#'s left-behind statement ends: nothing is written",
        "server: w#'s left-behind statement ends: such records are there already",
        "server: w#'s left-behind statement writes r# ['a', 'end'] end",
        "server: w#'s statement writes r# ['x', 'end'] end",
        "server: w#'s statement writes r# ['a', 'end'] end, r# ['b', 'end'] end",
        "server: w#'s statement writes r# ['c', 'end'] end",
        "w#: declares w# dead",
        "w#: finds # of the commit's runs written",
        "w#: finds that r# is its own",
        "w#: frees r# of w#",
        "w#: is continued",
        "w#: learns that it is dead, and comes back as w#",
        "w#: learns that it is dead, and ends",
        "w#: learns that [#] is in other hands",
        "w#: learns that the records are there already",
        "w#: leaves",
        "w#: r#'s timer fires",
        "w#: renews its lease, has its lock again",
    ):
        assert what in happened, f"{what!r} is not among {sorted(happened)}"


# The search


def lights(state):
    """Green, yellow, red, and a lamp that may burn out. Two ways lead to yellow."""
    follows = {"green": ["yellow"], "yellow": ["red"], "red": ["green", "dark"], "start": ["red", "yellow", "green"]}
    for after in follows.get(state, []):
        yield Step(f"to {after}", after, after != "dark", "it burns" if after == "fire" else "")


def search_lights(wrong=(), goal="green", steps=lights):
    return explore("start", steps, wrong=lambda s: f"{s} is bad" if s in wrong else "", goal=lambda s: s == goal)


def test_the_search_names_the_shortest_way_to_a_bad_state():
    result = search_lights(wrong=["red"])
    assert (result.wrong, result.trace, result.last) == ("red is bad", ["to red"], "red")
    assert str(result) == "red is bad\n   1. to red\nwhich leaves\nred"


def test_the_search_names_the_way_to_a_state_that_leads_nowhere():
    result = search_lights()
    assert (result.trace, result.last) == (["to red", "to dark"], "dark")


def test_a_goal_that_only_a_fault_leads_to_is_out_of_reach():
    result = search_lights(goal="dark")
    assert (result.trace, result.goals) == ([], 1)
    assert result.wrong


def test_a_step_can_be_wrong_whatever_it_leads_to():
    def burning(state):
        yield from lights(state)
        if state == "dark":
            yield Step("to fire", "fire", True, "it burns")

    result = search_lights(steps=burning)
    assert (result.wrong, result.trace) == ("it burns", ["to red", "to dark", "to fire"])


def test_a_model_that_grows_for_ever_is_noticed():
    with pytest.raises(RuntimeError, match="more than 10 states"):
        explore(0, lambda n: [Step("one more", n + 1)], wrong=lambda n: "", goal=lambda n: False, most=10)
