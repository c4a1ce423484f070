"""Workers on a server of their own, to be killed, stopped, drained and cut off."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting_for import eventually
from tests.workers import ROOT

__all__ = ["Cluster", "Member"]


@dataclass
class Member:
    """A worker process."""

    number: int
    log: Path
    pid: int = 0
    status: int | None = None
    stopped: bool = False
    told: str = ""  # why it may end
    begun: threading.Event = field(default_factory=threading.Event)

    def send(self, number: signal.Signals) -> None:
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Cluster:
    """The workers that live.

    Args:
        logs: directory for what they say.
        broken: what the workers lack; see ``broken.py``.
        about_to_kill: called with the pid of a worker right before it is killed.
    """

    def __init__(
        self, logs: Path, broken: str | None = None, about_to_kill: Callable[[int], None] = lambda pid: None
    ) -> None:
        self.logs = logs
        self.members: list[Member] = []
        self.all: dict[int, Member] = {}
        self.did: Counter[str] = Counter()
        self.violations: list[str] = []
        self._broken = broken
        self._about_to_kill = about_to_kill
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=ROOT,
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._hear, name="nursery", daemon=True).start()

    def start(self) -> Member:
        number = len(self.all) + 1
        member = self.all[number] = Member(number, self.logs / f"worker{number}.log")
        self._nursery.stdin.write(json.dumps({"number": number, "log": str(member.log), "broken": self._broken}) + "\n")
        self._nursery.stdin.flush()
        assert member.begun.wait(60), "the nursery does not answer"
        self.members.append(member)
        return member

    def _hear(self) -> None:
        for line in self._nursery.stdout:
            what, number, value = line.split()[:3]
            member = self.all[int(number)]
            if what == "started":
                member.pid = int(value)
                member.begun.set()
                continue
            member.status = int(value)
            if member.told != "killed" and not self._left_in_order(member):
                self.violations.append(f"worker {number} ended by itself with status {value}, see {member.log}")

    def _left_in_order(self, member: Member) -> bool:
        said = member.log.read_text(errors="replace") if member.log.exists() else ""
        if not re.search(r" (INFO|WARNING|ERROR) ", said):
            # It has not served yet: it need not wait for a database, nor give anything back.
            in_vain = member.status == 1 and ("Cannot reach" in said or "continuum.E011" in said)
            return in_vain or (bool(member.told) and member.status == -signal.SIGTERM)
        return bool(member.told) and member.status in (0, 1)

    def pick(self, where: float) -> Member:
        """Return the member at a place between 0 and 1."""
        return self.members[int(where * len(self.members))]

    def kill(self, member: Member) -> None:
        self.did["kill -9"] += 1
        member.told = "killed"
        self._about_to_kill(member.pid)
        member.send(signal.SIGKILL)
        self.members.remove(member)

    def drain(self, member: Member) -> None:
        """Ask a member to stop; how long that may take is seen at the end."""
        self.did["SIGTERM"] += 1
        member.told = "drained"
        self.resume(member)
        member.send(signal.SIGTERM)
        self.members.remove(member)

    def stop(self, member: Member) -> None:
        member.stopped = True
        member.send(signal.SIGSTOP)

    def resume(self, member: Member) -> None:
        member.stopped = False
        member.send(signal.SIGCONT)

    def replace_the_fallen(self, size: int) -> None:
        """Start members until there are as many as there should be."""
        self.members = [member for member in self.members if member.status is None]
        while len(self.members) < size:
            self.start()

    def close(self) -> None:
        """Drain the members, and require that all that were asked to do so have ended."""
        for member in list(self.members):
            self.did["SIGTERM"] -= 1
            self.drain(member)
        drained = [member for member in self.all.values() if member.told == "drained"]
        try:
            # Seconds, but where the machine has other work.
            eventually(lambda: all(member.status is not None for member in drained), 60)
        except AssertionError:
            slow = [member.number for member in drained if member.status is None]
            self.violations.append(f"workers {slow} do not end within 60 s of SIGTERM, see {self.logs}")
        self._nursery.stdin.close()
        self._nursery.wait(30)
        for member in self.all.values():
            said = member.log.read_text(errors="replace") if member.log.exists() else ""
            self.violations += [
                f"worker {member.number} says: {line.strip()}; see {member.log}"
                for line in said.splitlines()
                if " CRITICAL " in line or "was never retrieved" in line
            ]
