"""Numbers and lengths of time in words, for whoever tells people something."""

from datetime import timedelta

__all__ = ["counted", "duration"]


def counted(number: int, one: str, many: str = "") -> str:
    """Return ``1 run``, ``2,000 runs``.

    Args:
        number: how many.
        one: the word for one of them.
        many: the word for several, if an ``s`` does not do.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(span: timedelta, units: int = 2) -> str:
    """Return a length of time in its largest units: ``12 ms``, ``4.2 s``, ``42 s``, ``3 h 12 min``, ``2 d``.

    Args:
        span: the length of time; its sign does not count.
        units: how many units, 1 or 2.
    """
    seconds = abs(span.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, unit, smaller_size, smaller_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            first, rest = whole // size, whole % size // smaller_size
            return f"{first} {unit} {rest} {smaller_unit}" if rest and units > 1 else f"{first} {unit}"
    return f"{whole} s"
