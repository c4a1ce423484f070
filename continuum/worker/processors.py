"""How many processors this process may use, which is how many worker processes there are unless somebody says.

Two things bound it: the processors it may run on (``taskset``, a cpuset), and the time it gets on them (the CPU limit
of a container, ``CPUQuota=`` of systemd). The kernel shows the second in files of its control groups:

* version 2, ``cpu.max`` (Documentation/admin-guide/cgroup-v2.rst): ``$MAX $PERIOD``, two numbers of microseconds, or
  ``max`` in the place of the first. Inside a container the files lie in the root of the hierarchy;
* version 1, ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` (Documentation/scheduler/sched-bwc.rst), one number each,
  and -1 for no limit.

A group is bound by the limits of the groups it lies in as well. ``/proc/self/cgroup`` has a line for each hierarchy,
``NUMBER:CONTROLLERS:PATH``; that of version 2 is ``0::PATH`` (cgroups(7)).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["MOST_PROCESSES", "by_default", "usable"]

MOST_PROCESSES = 4
"""So many worker processes there are by themselves, however many processors: each has connections of its own."""


def by_default() -> int:
    """Return how many worker processes there are when nobody says: one a processor, :data:`MOST_PROCESSES` at most."""
    return min(usable(), MOST_PROCESSES)


def usable(proc: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processors this process may use, 1 or more.

    A part of a processor does not count: a limit of 1.5 leaves one. What cannot be read, or understood, is no limit.

    Args:
        proc: the file that tells in which control groups this process is.
        mounted: where the control groups are mounted.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([affinity or 1, *_limits(proc, mounted)]))


def _limits(proc: Path, mounted: Path) -> Iterator[int]:
    """Yield the limits of the groups this process is in, and of those around them, in whole processors."""
    # The root's own as well, whatever the first file says: a container without a namespace for its groups is told
    # where it is on the host, and sees itself in the root.
    paths = {"": "/", "cpu": "/"}
    for line in _read(proc).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            paths[""] = path
        elif "cpu" in controllers.split(","):
            paths["cpu"] = path
            paths[controllers] = path  # the folder may be called after all that are mounted together
    for name, path in paths.items():
        for folder in _folders(mounted / name, path):
            quota, period = _in_version_1(folder) if name else _in_version_2(folder)
            if quota > 0 and period > 0:
                yield quota // period


def _folders(root: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a group and those it lies in, up to the root."""
    inside = PurePosixPath(path.lstrip("/"))
    if ".." in inside.parts:  # a group beyond the root that can be seen from here
        inside = PurePosixPath()
    yield from (root / each for each in (inside, *inside.parents))


def _in_version_2(folder: Path) -> tuple[int, int]:
    quota, *rest = _read(folder / "cpu.max").split() or [""]
    return _number(quota), _number(rest[0] if rest else "")


def _in_version_1(folder: Path) -> tuple[int, int]:
    return _number(_read(folder / "cpu.cfs_quota_us")), _number(_read(folder / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int:
    """Return a number, or -1: there is none."""
    try:
        return int(text)
    except ValueError:
        return -1
