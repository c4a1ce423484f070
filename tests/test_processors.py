"""How many processors a process may use: where it may run, and what its control groups leave it."""

import os

import pytest

from continuum.worker import processors
from continuum.worker.processors import MOST_PROCESSES, by_default, usable


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.fixture
def groups(tmp_path):
    """Lay out what the kernel shows: ``groups("0::/a", {"a/cpu.max": "max 100000"})``; returns the processors left."""

    def usable_with(memberships, files):
        (tmp_path / "self").write_text(memberships)
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return usable(tmp_path / "self", tmp_path / "mounted")

    return usable_with


def test_without_control_groups_it_is_where_the_process_may_run(tmp_path):
    assert usable(tmp_path / "no", tmp_path / "none") == 8


def test_where_nobody_tells_where_it_may_run_it_is_all_there_are(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable(tmp_path / "no", tmp_path / "none") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable(tmp_path / "no", tmp_path / "none") == 1


def test_on_this_machine_it_is_no_more_than_there_are(monkeypatch):
    monkeypatch.undo()
    assert 1 <= usable() <= os.cpu_count()


def test_the_default_is_one_for_each_processor_up_to_four(monkeypatch):
    found = {}
    for count in (1, 2, 4, 64):
        monkeypatch.setattr(processors, "usable", lambda count=count: count)
        found[count] = by_default()
    assert found == {1: 1, 2: 2, 4: 4, 64: MOST_PROCESSES}
    assert MOST_PROCESSES == 4


QUOTAS = [(300_000, 3), (150_000, 1), (199_999, 1), (200_000, 2), (50_000, 1), (1000, 1), (900_000, 8)]


class TestVersion2:
    @pytest.mark.parametrize(("quota", "processors_left"), QUOTAS)
    def test_whole_processors_of_the_limit_count_and_never_less_than_one(self, groups, quota, processors_left):
        assert groups("0::/app\n", {"app/cpu.max": f"{quota} 100000\n"}) == processors_left

    def test_the_period_may_be_another(self, groups):
        assert groups("0::/app\n", {"app/cpu.max": "30000 10000\n"}) == 3

    def test_max_is_no_limit(self, groups):
        assert groups("0::/app\n", {"app/cpu.max": "max 100000\n"}) == 8

    def test_a_group_further_up_may_be_the_one_that_limits(self, groups):
        files = {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/cpu.max": "500000 100000\n"}
        assert groups("0::/a/b/c\n", files) == 2

    def test_in_a_container_the_limit_is_in_the_root(self, groups):
        assert groups("0::/\n", {"cpu.max": "200000 100000\n"}) == 2

    def test_in_a_container_that_is_told_where_it_is_on_the_host_as_well(self, groups):
        assert groups("0::/kubepods/burstable/pod1/container2\n", {"cpu.max": "200000 100000\n"}) == 2

    def test_a_group_beyond_the_root_is_not_looked_for(self, groups, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "cpu.max").write_text("100000 100000\n")
        assert groups("0::/../other\n", {"cpu.max": "300000 100000\n"}) == 3


class TestVersion1:
    @pytest.mark.parametrize(("quota", "processors_left"), QUOTAS)
    def test_whole_processors_of_the_limit_count_and_never_less_than_one(self, groups, quota, processors_left):
        files = {"cpu/app/cpu.cfs_quota_us": f"{quota}\n", "cpu/app/cpu.cfs_period_us": "100000\n"}
        assert groups("4:memory:/else\n1:cpu:/app\n0::/\n", files) == processors_left

    def test_minus_one_is_no_limit(self, groups):
        files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
        assert groups("1:cpu:/\n", files) == 8

    def test_controllers_may_be_mounted_together(self, groups):
        files = {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
        assert groups("3:cpu,cpuacct:/a/b\n2:cpuset:/\n", files) == 2

    def test_in_a_container_the_limit_is_in_the_root(self, groups):
        files = {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}
        assert groups("3:cpu,cpuacct:/docker/4f2a\n", files) == 3

    def test_the_tightest_of_all_limits_counts(self, groups):
        files = {
            "cpu/a/cpu.cfs_quota_us": "500000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "300000",
            "cpu/cpu.cfs_period_us": "100000",
        }
        assert groups("1:cpu:/a\n", files) == 3


class TestWhatCannotBeUnderstood:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\n",
            "max",
            "200000",
            "200000 0",
            "200000 -5",
            "0 100000",
            "-1 100000",
            "two 100000",
            "1e9 x",
            "ß",
            "9" * 5000,
        ],
    )
    def test_is_no_limit(self, groups, text):
        assert groups("0::/app\n", {"app/cpu.max": text}) == 8

    @pytest.mark.parametrize("text", ["", "nonsense", "0", "0:", "1:cpu", ":::::", "0::", "x:cpu,:/\n\n", "1:cpu:/é"])
    def test_is_no_membership(self, groups, text):
        assert groups(text, {}) == 8

    def test_is_no_file(self, groups):
        assert groups("0::/app\n", {"app/cpu.max/directory": ""}) == 8

    def test_is_no_period(self, groups):
        assert groups("1:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000"}) == 8
