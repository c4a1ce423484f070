"""What must hold when all is over, asked of the database by SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.db import connection

from tests.chaos import limits
from tests.chaos.load import Story, tip_of
from tests.chaos.questions import ENDED, QUESTIONS

__all__ = ["describe_stuck", "rows", "unfinished", "violations"]


def rows(sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def unfinished() -> int:
    """How many runs have not ended."""
    return rows(f"SELECT count(*) FROM continuum_runs WHERE state NOT IN {ENDED}")[0][0]


def violations(stories: Iterable[Story]) -> list[str]:
    """Return, as sentences, all that should not be."""
    found = []
    for what, sql in {**QUESTIONS, **limits.QUESTIONS}.items():
        answer = rows(sql)
        if answer:
            shown = "; ".join(str(tuple(map(str, row))) for row in answer[:3])
            found.append(f"{len(answer)} {what}: {shown}")
    for story in stories:
        found += [f"{story.kind} {story.key} {story.run_id}: {what}" for what in _about(story)]
    return found


def _about(story: Story) -> Iterator[str]:
    run = tip_of(story)
    wanted = {"waits_for_nothing": "cancelled"}.get(story.kind, "completed")
    if story.kind == "books" and story.arguments[1]:
        wanted = "failed"
    if run.state != wanted:
        yield f"ended {run.state}, not {wanted}: {run.error}"
        return
    if wanted != "completed":
        return
    if story.kind == "collects":
        yield from _heard(story, "word", run.result)
    elif story.kind == "listens_twice":
        for name, got in zip(("left", "right"), run.result, strict=True):
            yield from _heard(story, name, got)
    elif (expected := _expected(story)) is not None and run.result != expected:
        yield f"returned {run.result}, not {expected}"


def _heard(story: Story, name: str, got: list[int]) -> Iterator[str]:
    sure = story.sure.get(name, [])
    if len(set(got)) != len(got):
        yield f"heard a signal twice: {got}"
    if extra := set(got) - set(sure) - story.doubtful:
        yield f"heard what nobody said: {sorted(extra)}"
    if [word for word in got if word not in story.doubtful] != sure:
        yield f"heard {got} of {sure}, and perhaps {sorted(story.doubtful)}"


def _expected(story: Story) -> Any:
    key = story.key
    match story.kind:
        case "steps":
            names = ("first", "once:paid", "queued", "few", "slowly", "once:queued", "flaky queued", "flaky")
            return [*(_key(key, name) for name in names), *(2 * n for n in range(5)), f"{key}:last"]
        case "hurries":
            return [f"once:{key}:{name}" for name in ("tight", "tight queued", "calm")]
        case "beats_on":
            return [f"{key}:here", f"{key}:there"]
        case "times":
            return [[True, False], f"{key}:timed"]
        case "fans_out":
            ends = ("{}:child 0", "failed", "{}:grand:child 0", "{}:child 3")
            joined = [ends[n % 4].format(f"{key}:join {n}") for n in range(5)]
            return [joined, [ends[n].format(f"{key}:{n}") for n in range(4)]]
        case "books":
            return f"{key}:booked"
        case "goes_on":
            return [text for n in range(5) for text in (f"once:{key}:{n}", f"{key}:round {n}")]
        case "meets_gate":
            return [f"once:{key}:begun", f"{key}:passed", f"once:{key}:after"]
        case "catches":
            return f"once:{key}:caught"
        case "queues_up":
            return 52
    return None


def _key(key: str, name: str) -> str:
    return f"once:{key}:{name.removeprefix('once:')}" if name.startswith("once:") else f"{key}:{name}"


def describe_stuck() -> str:
    """Tell all there is to know about what has not ended."""
    lines = []
    for run in rows(
        "SELECT id, workflow, state, owner_id, lease_token, recoveries, next_wakeup_at, waiting_on::text, "
        "parent_run_id "
        f"FROM continuum_runs WHERE state NOT IN {ENDED} ORDER BY id LIMIT 10"
    ):
        lines.append(f"stuck: {run}")
        for what, sql in {
            "owner": "SELECT w.id, w.pid, w.state, w.session_lock, w.started_at, w.heartbeat_at, w.expires_at, "
            "w.suspect_id, w.trial_token "
            "FROM continuum_workers w JOIN continuum_runs r ON r.owner_id = w.id WHERE r.id = %s",
            "unread": "SELECT id, kind, name, command_id, payload::text FROM continuum_inbox "
            "WHERE run_id = %s AND consumed_at IS NULL",
            "task": "SELECT command_id, activity, queue, state, attempt, owner_id, due_at, heartbeat_at "
            "FROM continuum_activity_tasks WHERE run_id = %s",
            "history": "SELECT seq, type, command_id, name, left(data::text, 120) FROM continuum_events "
            "WHERE run_id = %s "
            "ORDER BY seq DESC LIMIT 4",
        }.items():
            lines += [f"  {what}: {row}" for row in rows(sql, [run[0]])]
    lines.append(f"now: {rows('SELECT clock_timestamp()')[0][0]}")
    return "\n".join(lines)
