"""An audit as a page of text, for whoever has to decide on a deploy or was woken up."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from continuum.audit.findings import (
    Audit,
    ExpiredClaim,
    Registration,
    Site,
    StuckRun,
    UnloadedVersion,
    Version,
    Workflow,
)
from continuum.audit.proofs import Drift, ReplayReport
from continuum.audit.verdicts import SAFE_TO_REMOVE

__all__ = ["audit_lines"]

# Of a long list so many entries are shown; of what needs more lines than one, fewer.
_MOST, _MOST_TOLD = 20, 5

# A line of a report that begins with what it is about.
_NAMED = re.compile(r"[A-Z][\w ]*: +\S")

_SKIPPED = {
    "ended": "ended meanwhile",
    "newer_version": "not begun, and started for a higher version than is loaded here",
    "not_loaded": "of workflows that are not loaded here",
    "not_sampled": "not among the sample",
    "pinned": 'of other code, which VERSION_POLICY "pin" keeps away from them',
}


def audit_lines(audit: Audit, style: Any, width: int) -> Iterator[str]:
    """Yield the lines of the page.

    Args:
        audit: what was found.
        style: Django's, of a command; ``no_style()`` for none.
        width: columns.
    """
    page = _Page(style, width)
    workers = _counted(audit.workflow_registration.live_workers, "live worker")
    yield from page.wrapped(
        f"{_counted(audit.active_runs, 'active run')} in {audit.database!r}, {workers}, {_moment(audit.audited_at)}"
    )
    yield from page.section("Workflows loaded here", _workflows(page, audit.workflows))
    yield from page.section("Code on the workers", _registration(page, audit.workflow_registration))
    yield from page.section("Active runs of code that is not loaded here", _unloaded(page, audit))
    yield from page.section("Stuck runs", _stuck(page, audit))
    yield from page.section("Activities claimed by workers that are gone", _claims(page, audit))
    yield from page.section("Replay", _replay(page, audit.replay))
    yield from page.section("Strict", _strict(page, audit))


class _Page:
    def __init__(self, style: Any, width: int) -> None:
        self.style = style
        self.width = max(width, 40)

    def section(self, title: str, lines: Iterable[str]) -> Iterator[str]:
        yield ""
        yield self.style.MIGRATE_HEADING(title)
        yield from lines

    def wrapped(self, text: str, indent: int = 0, hanging: int = 0) -> list[str]:
        return textwrap.wrap(
            _printable(text),
            self.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hanging),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def item(self, text: str, *, mark: str = "", paint: Any = None) -> list[str]:
        """Wrap an entry of a section; ``mark`` is a word in front of it, which is painted."""
        lines = self.wrapped(f"{mark:<16}{text}" if mark else text, 2, 16 if mark else 4)
        if paint is None:
            return lines
        if mark:
            return [lines[0].replace(mark, paint(mark), 1), *lines[1:]]
        return [paint(line) for line in lines]

    def some(self, entries: Sequence[Any], told: Callable[[Any], Iterable[str]], most: int = _MOST) -> Iterator[str]:
        """Show the first of many."""
        for entry in entries[:most]:
            yield from told(entry)
        if len(entries) > most:
            yield from self.item(f"and {len(entries) - most:,} more: see --format json")

    def good(self, text: str) -> list[str]:
        return self.item(text, paint=self.style.SUCCESS)

    def bad(self, text: str) -> list[str]:
        return self.item(text, paint=self.style.ERROR)


def _workflows(page: _Page, workflows: Sequence[Workflow]) -> Iterator[str]:
    def told(each: Workflow) -> Iterator[str]:
        yield from page.item(f"{_version(each)}: {_counted(each.active_runs, 'active run')}")
        for site in each.patch_sites:
            yield from _site(page, site)

    shown = [each for each in workflows if each.active_runs or each.patch_sites]
    yield from page.some(shown, told)
    rest = len(workflows) - len(shown)
    if not workflows:
        yield from page.bad('none: no app has a workflows.py, and CONTINUUM["WORKFLOW_MODULES"] names none')
    elif rest:
        yield from page.item(f"{_counted(rest, 'version')} without active runs and patches")


def _site(page: _Page, site: Site) -> Iterator[str]:
    safe = site.verdict == SAFE_TO_REMOVE
    name = "a computed name" if site.name is None else repr(site.name)
    since = "no worker has it yet" if site.first_seen_at is None else f"first seen {_moment(site.first_seen_at)}"
    if site.name is None:
        why = f"cannot be judged, {_counted(site.in_flight_pre_patch, 'active run')} begun"
    elif site.in_flight_pre_patch:
        why = f"{_counted(site.in_flight_pre_patch, 'active run')} may need the old branch"
    elif safe:
        why = "no active run needs the old branch, and no live worker makes new ones that do"
    else:
        why = "no active run needs the old branch yet, but a live worker may run code without it"
    yield from page.item(
        f"patched({name}) at {site.file}:{site.line}: {why}; {since}",
        mark=site.verdict,
        paint=page.style.WARNING if safe else page.style.MIGRATE_LABEL,
    )


def _registration(page: _Page, found: Registration) -> Iterator[str]:
    if not found.live_workers:
        yield from page.bad("no worker that runs workflows is alive")
    for name in found.silent_workers:
        yield from page.item(f"{name}: does not tell what it has loaded; it may be anything")
    yield from page.some(
        found.not_registered, lambda each: page.item(f"{_version(each)}: loaded here, and never by a worker")
    )
    yield from page.some(
        found.not_loaded_here,
        lambda each: page.item(f"{_version(each)}: on {_counted(each.workers, 'live worker')}, not loaded here"),
    )
    if not found.live_workers:
        return
    yield from page.some(
        found.on_no_live_worker, lambda each: page.item(f"{_version(each)}: loaded here, on no live worker now")
    )
    if not (found.silent_workers or found.not_registered or found.not_loaded_here or found.on_no_live_worker):
        yield from page.good("the live workers have what is loaded here, and nothing else")


def _unloaded(page: _Page, audit: Audit) -> Iterator[str]:
    def told(each: UnloadedVersion) -> Iterator[str]:
        runs, workers = _counted(each.active_runs, "active run"), _counted(each.workers, "live worker")
        reason = f"; {each.reason}" if each.reason else ""
        yield from page.item(
            f"{_version(each)}: {runs}, on {workers}{reason}; such as {each.examples[0]}",
            mark="adoptable" if each.adoptable else "not adoptable",
            paint=page.style.MIGRATE_LABEL if each.adoptable else page.style.ERROR,
        )

    # What needs somebody first, and then what is most.
    yield from page.some(sorted(audit.unloaded_versions, key=lambda each: (each.adoptable, -each.active_runs)), told)
    if any(each.adoptable for each in audit.unloaded_versions):
        yield from page.item("The code here goes on with adoptable runs whose histories it replays: see --replay.")
    if not audit.unloaded_versions:
        yield from page.good("none")


def _stuck(page: _Page, audit: Audit) -> Iterator[str]:
    def told(alike: list[StuckRun]) -> Iterator[str]:
        run = alike[0]
        loaded = "" if run.workflow_loaded else ", which is not loaded here"
        yield from page.item(
            f"{run.run_id} in namespace {run.namespace}, of {_version(run)}{loaded}", paint=page.style.ERROR
        )
        yield from _told(page, run.reason, alike)

    yield from page.some(_alike(audit.stuck_unknown_version_runs), told, _MOST_TOLD)
    yield from _more(page, audit.stuck_runs - len(audit.stuck_unknown_version_runs))
    if not audit.stuck_runs:
        yield from page.good("none")


def _claims(page: _Page, audit: Audit) -> Iterator[str]:
    def told(claim: ExpiredClaim) -> list[str]:
        since = "" if claim.since is None else f" since {_moment(claim.since)}"
        return page.item(
            f"{claim.activity} in queue {claim.queue!r}, attempt {claim.attempt}, command {claim.command_id} of run "
            f"{claim.run_id}: with {claim.worker}, gone{since}"
        )

    yield from page.some(audit.expired_activity_claims, told)
    yield from _more(page, audit.expired_claims - len(audit.expired_activity_claims))
    if not audit.expired_claims:
        yield from page.good("none")


def _replay(page: _Page, replay: ReplayReport | None) -> Iterator[str]:
    def told(alike: list[Drift]) -> Iterator[str]:
        yield from page.item(f"{alike[0].run_id}, of {_version(alike[0])}: {alike[0].error}", paint=page.style.ERROR)
        yield from _told(page, alike[0].message, alike)

    if replay is None:
        yield from page.item("not asked for: --replay proves that the code here fits the histories of the active runs")
        return
    if not replay.live:
        yield from page.good("no active run, and so no history")
    elif replay.proved:
        yield from page.good(f"{_counted(replay.proved, 'history', 'histories')} replayed by the code here")
    if replay.drifted:
        yield from page.bad(f"{_counted(replay.drifted, 'history', 'histories')} not replayed by it")
    for reason, number in replay.skipped.items():
        yield from page.item(f"{_counted(number, 'history', 'histories')} not tried: {_SKIPPED[reason]}")
    yield from page.some(_alike(replay.drifts), told, _MOST_TOLD)
    yield from _more(page, replay.drifted - len(replay.drifts))
    if replay.drifts:
        yield from page.item('Meant? Keep the old way for such runs: if patched("a-name"): the new way, else: the old.')


def _alike(runs: Iterable[StuckRun | Drift]) -> list[list[Any]]:
    """Put together what parts from its code at the same place in the same way."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for run in runs:
        place = run.position.partition(" (")[0]
        kind = run.code or ("" if place else run.reason if isinstance(run, StuckRun) else run.message)
        groups.setdefault((run.workflow, run.version_hash, run.error, place, kind), []).append(run)
    return list(groups.values())


def _told(page: _Page, report: str, alike: list[Any]) -> Iterator[str]:
    """Show a report: of a drift what differs, and what lies around it where there is room."""
    paragraphs = report.split("\n\n")
    if alike[0].position and len(paragraphs) >= 4:
        # What it is about stands above it already, and what to do is said once for all.
        paragraphs = paragraphs[1:3]
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        table = paragraph.startswith("    event ")
        if table and max(map(len, lines)) + 4 > page.width:
            continue
        for line in lines:
            named = 13 if _NAMED.match(line) else 0
            yield from [f"    {_printable(line)}"] if table else page.wrapped(line, 4, named)
    if len(alike) > 1:
        yield from page.wrapped(f"and {len(alike) - 1:,} more like it, such as {alike[-1].run_id}", 4)


def _strict(page: _Page, audit: Audit) -> Iterator[str]:
    failures = audit.failures()
    for failure in failures:
        yield from page.bad(failure)
    if not failures:
        yield from page.good("nothing to object to")


def _more(page: _Page, number: int) -> Iterator[str]:
    if number > 0:
        yield from page.item(f"and {number:,} more: --limit says how many are listed")


def _version(each: Workflow | Version | UnloadedVersion | Any) -> str:
    return f"{each.workflow} version {each.version} ({each.version_hash or 'no hash'})"


def _printable(text: str) -> str:
    """Return text from the database such as a terminal may show: what would steer it is left out."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{f'{number:,}' if number else 'no'} {one if number == 1 else many or one + 's'}"
