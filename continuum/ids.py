"""Ids: UUIDv7 for runs, and ids that follow from what they name.

A run's id carries the moment it was made in its upper 48 bits (RFC 9562, version 7), so that ids sort by time, new rows
land at the right-hand end of every index, and the history table can be partitioned by month on the id alone.
"""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import unpack
from uuid import UUID, SafeUUID

__all__ = ["derived", "derived_child", "smallest_uuid7", "uuid7", "uuid7_time_us"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION_7 = 7 << 76
_VERSION_8 = 8 << 76
_VARIANT = 0b10 << 62
_MASK_12 = (1 << 12) - 1
_MASK_48 = (1 << 48) - 1
_MASK_62 = (1 << 62) - 1

# UUID(int=…) spends most of its time on checking its arguments; these write the two slots that it would.
_new = UUID.__new__
_set_int = UUID.int.__set__
_set_is_safe = UUID.is_safe.__set__
_UNKNOWN = SafeUUID.unknown

_POOL_WORDS = 512
_lock = threading.Lock()
_pool: list[int] = []  # random 64-bit words: one read of the system's generator serves many ids
_last = 0


def _after_fork() -> None:
    """Give a forked child its own lock and randomness: with its parent's it would repeat the parent's ids."""
    global _lock
    _lock = threading.Lock()
    _pool.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _uuid(value: int) -> UUID:
    result = _new(UUID)
    _set_int(result, value)
    _set_is_safe(result, _UNKNOWN)
    return result


def uuid7() -> UUID:
    """Return a new time-ordered id (RFC 9562, version 7).

    48 bits of milliseconds since the epoch, 12 bits for the part of the millisecond (about a quarter of a microsecond
    each), 62 random bits. Within a process every id is greater than the one before it, whichever thread asks and
    also when the system's clock is set back.
    """
    global _last
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    stamp = milliseconds << 12 | (rest << 12) // 1_000_000
    with _lock:
        if stamp <= _last:
            stamp = _last + 1
        _last = stamp
        if not _pool:
            _pool.extend(unpack(f"{_POOL_WORDS}Q", os.urandom(_POOL_WORDS * 8)))
        word = _pool.pop()
    return _uuid((stamp >> 12) << 80 | _VERSION_7 | (stamp & _MASK_12) << 64 | _VARIANT | word & _MASK_62)


def uuid7_time_us(value: UUID) -> int:
    """Return when a version 7 id was made, in microseconds since the epoch (UTC).

    The millisecond is certain. The microseconds are those of ``uuid7()``; an id of another make, or a derived one, may
    hold anything there.

    Raises:
        ValueError: the id is not of version 7.
    """
    if value.version != 7:
        raise ValueError(f"{value} is not a UUID of version 7, so it holds no time")
    number = value.int
    # Rounded up, because uuid7() rounds down: a whole microsecond comes back as itself.
    return (number >> 80) * 1000 + (((number >> 64 & _MASK_12) * 1000 + _MASK_12) >> 12)


def smallest_uuid7(moment: datetime) -> UUID:
    """Return the smallest version 7 id of the millisecond that ``moment`` (aware) falls into: a bound for ranges.

    Raises:
        ValueError: ``moment`` is naive, or lies before 1970.
    """
    if moment.tzinfo is None:
        raise ValueError(f"smallest_uuid7() needs an aware datetime, not {moment!r}")
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    if milliseconds < 0:
        raise ValueError(f"smallest_uuid7() needs a moment from 1970 on, not {moment.isoformat()}")
    return _uuid(milliseconds << 80 | _VERSION_7 | _VARIANT)


def derived(*parts: str | int | bytes | UUID | None) -> UUID:
    """Return the id (version 8) that always follows from these parts, and practically from no others.

    Parts are told apart by type and by length, so ``("a", "bc")``, ``("ab", "c")`` and ``("abc",)`` differ, as do
    ``1`` and ``"1"``.

    Raises:
        TypeError: a part is something else than text, an integer, bytes, a UUID or None.
    """
    digest = int.from_bytes(_digest(parts)[:16])
    return _uuid(digest & ~(0xF << 76) & ~(0b11 << 62) | _VERSION_8 | _VARIANT)


def derived_child(parent_id: UUID, command_path: str, key: str | None = None, time_us: int | None = None) -> UUID:
    """Return the id of the child that a parent run starts at ``command_path``: the same one at every replay.

    It has the layout of version 7, with the parent's time (or ``time_us``, microseconds since the epoch) in front, so
    that a child's history lies in the same partition as its parent's, and 74 bits that follow from the arguments.

    Args:
        parent_id: the parent's run id.
        command_path: the identity of the command, such as ``"0.2:3"``.
        key: the ``id=`` that the workflow gave the child, if any.
        time_us: the time to show instead of the parent's. The remaining bits do not depend on it.

    Raises:
        ValueError: no ``time_us`` is given, and the parent's id is not of version 7.
    """
    milliseconds = (uuid7_time_us(parent_id) if time_us is None else time_us) // 1000
    digest = int.from_bytes(_digest(("child", parent_id, command_path, key))[:10])
    upper, lower = digest >> 62 & _MASK_12, digest & _MASK_62
    return _uuid((milliseconds & _MASK_48) << 80 | _VERSION_7 | upper << 64 | _VARIANT | lower)


def _digest(parts: tuple) -> bytes:
    hashed = sha256()
    for part in parts:
        if isinstance(part, str):
            tag, data = b"s", part.encode("utf-8", "surrogatepass")
        elif isinstance(part, UUID):
            tag, data = b"u", part.bytes
        elif isinstance(part, bytes):
            tag, data = b"b", part
        elif part is None:
            tag, data = b"n", b""
        elif isinstance(part, int) and not isinstance(part, bool):
            tag, data = b"i", b"%d" % part
        else:
            raise TypeError(f"an id cannot be derived from {part!r}: only text, integers, bytes, UUIDs and None")
        hashed.update(b"%b%d:%b" % (tag, len(data), data))
    return hashed.digest()
