"""Exports: one long activity that tells how far it is, so that whoever comes after it need not begin again.

It runs on the queue ``exports``, of which the whole cluster carries out one task at a time: no order waits for a file.
"""

import asyncio
import csv
import io
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from django.conf import settings

from continuum import ModelRef, Retry, activity, activity_info, heartbeat, workflow
from shop.models import Export, OrderLine

PAGE = 25
"""Lines between two heartbeats."""


@dataclass(frozen=True)
class Bookmark:
    """How far a file is: the last line that is in it, how many lines that makes, and its size up to there."""

    last_id: int = 0
    lines: int = 0
    size: int = 0


def unfinished(export: Export) -> Path:
    """Where the file is while it is written."""
    return export.path.with_suffix(".part")


@activity(
    queue="exports",
    retry=Retry(max_attempts=5, base=0.5),
    heartbeat_timeout=timedelta(seconds=20),
)
def write_order_lines(export: Export) -> int:
    """Write the order lines of a batch to a file, page by page, and return how many there are.

    An attempt goes on where the last one's last heartbeat was: what was written after that is cut off first, so that
    each line is in the file once.
    """
    at = Bookmark(**(activity_info().heartbeat_details or {}))
    if at.lines:
        Export.objects.filter(pk=export.pk).update(resumed_after=at.lines)
    path = unfinished(export)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if at.size else "wb") as file:
        file.truncate(at.size)
        file.seek(at.size)
        while lines := list(
            OrderLine.objects.filter(order__batch=export.batch, pk__gt=at.last_id).order_by("pk")[:PAGE]
        ):
            time.sleep(settings.SHOP_LATENCY)
            file.write(_rows(lines))
            file.flush()
            at = Bookmark(lines[-1].pk, at.lines + len(lines), file.tell())
            # Raises ActivityCancelledError once nobody wants the file any more.
            heartbeat(asdict(at))
    path.replace(export.path)
    return at.lines


def _rows(lines: list[OrderLine]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows((x.pk, x.order_id, x.sku, x.quantity, x.unit_price_cents) for x in lines)
    return text.getvalue().encode()


@activity(retry=Retry(max_attempts=5, base=0.2), transactional=True)
def finish_export(export: Export, lines: int) -> None:
    """Note that the file is there."""
    Export.objects.filter(pk=export.pk).update(state=Export.State.DONE, lines=lines)


@activity(retry=Retry(max_attempts=5, base=0.2))
def discard_export(export: Export) -> None:
    """Delete what was written of a file nobody wants any more."""
    unfinished(export).unlink(missing_ok=True)
    Export.objects.filter(pk=export.pk).update(state=Export.State.CANCELLED)


@workflow
async def export(file: ModelRef) -> int:
    """Make a file of a batch's order lines; the result is the number of lines. Cancelled, it leaves none."""
    try:
        lines = await write_order_lines(file)
    except asyncio.CancelledError:
        await discard_export(file)
        raise
    await finish_export(file, lines)
    return lines
