"""What processes use of the machine, as ``/proc`` has it (Linux)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["Memory", "cpu_seconds", "family", "memory", "parent"]

_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Megabytes of memory: all that is resident, and with what is shared divided among those that share it."""

    rss: float
    pss: float


def family(pids: Iterable[int]) -> list[int]:
    """Return these processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(_stat(path)[1], []).append(int(path.parent.name))
    found = list(pids)
    for pid in found:  # grows as we go
        found += children.get(pid, [])
    return found


def parent(pid: int) -> int:
    """Return the process id of a process's parent."""
    return _stat(Path(f"/proc/{pid}/stat"))[1]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that these processes, their descendants and those that have ended have used."""
    used = 0
    for pid in family(pids):
        with suppress(OSError):
            used += sum(_stat(Path(f"/proc/{pid}/stat"))[11:15])
    return used / _TICKS


def memory(pids: Iterable[int]) -> Memory:
    """Return what these processes and their descendants have in memory."""
    text = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in family(pids))
    sizes = {name: sum(map(int, re.findall(rf"^{name}:\s+(\d+) kB", text, re.M))) for name in ("Rss", "Pss")}
    return Memory(sizes["Rss"] / 1024, sizes["Pss"] / 1024)


def _stat(path: Path) -> list[int]:
    """Return the numbers of a process from its state (as 0) on: the parent is at 1, the CPU times from 11 to 14."""
    return [0, *map(int, path.read_text().rpartition(") ")[2].split()[1:])]
