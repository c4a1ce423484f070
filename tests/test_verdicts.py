"""Which runs may need the old branch of a patch."""

import pytest

from continuum.audit.verdicts import ActiveRuns, have_site, in_flight_pre_patch, may_be_pre_patch

OLD, NEW, OTHER = "old", "new", "other"


def runs(version_hash=OLD, *, begun=True, forked=False, decided=(), hashes=(), number=1):
    return ActiveRuns(
        "shop.sell", 1, version_hash, "suspended", begun, forked, frozenset(decided), frozenset(hashes), number
    )


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        pytest.param(runs(OLD), True, id="begun by code without the site"),
        pytest.param(runs(OLD, begun=False), False, id="begun by nobody: whoever takes it comes to the site first"),
        pytest.param(runs(OLD, decided={"tax"}), False, id="its history holds the decision"),
        pytest.param(runs(OLD, decided={"discount"}), True, id="its history holds the decision on another patch"),
        pytest.param(runs(NEW), False, id="only ever run by code with the site"),
        pytest.param(runs(NEW, hashes={OLD, NEW}), True, id="adopted from code without it"),
        pytest.param(runs(NEW, hashes={NEW, OLD}), True, id="taken by code without it for a while, and back"),
        pytest.param(runs(NEW, hashes={OTHER, NEW}), False, id="adopted from other code with the site"),
        pytest.param(runs("never seen"), True, id="begun by code that nobody has registered"),
        pytest.param(runs(""), True, id="begun by code that is not recorded"),
        pytest.param(runs(NEW, forked=True), True, id="a fork: who made the history it shares is not known"),
        pytest.param(runs(NEW, forked=True, decided={"tax"}), False, id="a fork that shares the decision"),
    ],
)
def test_a_run_may_need_the_old_branch_unless_it_certainly_does_not(group, expected):
    assert may_be_pre_patch(group, "tax", {NEW, OTHER}) is expected


def test_runs_are_counted_in_groups():
    groups = [runs(OLD, number=3), runs(NEW, number=40), runs(NEW, hashes={OLD}, number=5), runs(begun=False)]
    assert in_flight_pre_patch(groups, "tax", [NEW]) == 8


def test_of_a_computed_name_every_run_that_has_begun_counts():
    groups = [runs(NEW, number=3), runs(NEW, decided={"tax"}, number=4), runs(NEW, begun=False, number=5)]
    assert in_flight_pre_patch(groups, None, [NEW]) == 7


def test_a_version_has_a_site_if_it_asks_at_as_many_places():
    sites = {OLD: [()], NEW: [("tax", None)], OTHER: [("tax", "tax")]}
    assert have_site("tax", 1, sites) == {NEW, OTHER}
    assert have_site("tax", 2, sites) == {OTHER}
    assert have_site("discount", 1, sites) == set()


def test_of_several_registrations_of_the_same_code_the_one_that_knows_least_counts():
    assert have_site("tax", 1, {NEW: [("tax",), ()]}) == set()
