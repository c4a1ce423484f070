"""Trees and JSON text; the functions the rest of the package calls.

Most values are plain JSON already. Those are recognised by their exact types, go through the C encoder and scanner of
``json`` as they are, and never become a tree of their own. What the text then looks like tells whether a closer look
is needed: NUL or a surrogate in a string shows as ``\\u0000`` or ``\\ud…``, a possible tag as ``"~``, a huge number as
a run of digits.
"""

from __future__ import annotations

import json
import re
from json import encoder as _json_encoder
from typing import Any

from continuum.exceptions import DurableValueError
from continuum.values.annotations import codec_for
from continuum.values.refusals import MAX_DEPTH, Refusal, TooDeep
from continuum.values.trees import from_tree, to_tree

__all__ = ["TAG_MARK", "decode", "dump", "encode", "encode_plain", "has_codec", "parse", "restore", "scan"]


def _no_default(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} in a JSON tree")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


TAG_MARK = '"~'
"""The beginning of a tag. A text without it is plain JSON; one with it may still be."""

_quote = _json_encoder.encode_basestring_ascii
_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False, default=_no_default)
_decoder = json.JSONDecoder(parse_constant=_no_constant)
scan = _decoder.scan_once  # the tree at a place in a text, and where it ends; or StopIteration, ValueError

if _json_encoder.c_make_encoder is not None:
    # JSONEncoder.encode() builds this anew for every value, which takes longer than encoding a small one.
    _chunks = _json_encoder.c_make_encoder(None, _no_default, _quote, None, ":", ",", False, False, False)

    def dump(tree: Any) -> str:
        """The text of a tree: compact, ASCII."""
        return "".join(_chunks(tree, 0))

else:  # an interpreter without the C accelerator

    def dump(tree: Any) -> str:
        """The text of a tree: compact, ASCII."""
        return _encoder.encode(tree)


_SCALARS = frozenset({type(None), bool, int, float, str})
_all_scalars = _SCALARS.issuperset
_all_str = frozenset({str}).issuperset

# Integers below this are the most common values, and certain not to need a closer look.
_SHORT = 10**18
_LEAST, _MOST = -(2**30) + 1, 2**30 - 1

# A run of 617 digits has at least 19 among every 32nd character; looking at those only is 32 times as fast.
_STRIDE = 32
_long_number = re.compile(f"[0-9]{{{617 // _STRIDE}}}").search


def _plain(value: Any, depth: int) -> bool:
    """Whether a list or dict is made of exact JSON types throughout, ``depth`` levels down."""
    if depth > MAX_DEPTH:
        return False
    if type(value) is dict:
        if not _all_str(map(type, value)):
            return False
        value = value.values()
    if _all_scalars(map(type, value)):
        return True
    for item in value:
        kind = type(item)
        if kind is dict or kind is list:
            if not _plain(item, depth + 1):
                return False
        elif kind not in _SCALARS:
            return False
    return True


def _telling(text: str) -> bool:
    """Whether a text made of plain values may still hold something that needs a tag."""
    if "\\u0000" in text or "\\ud" in text or TAG_MARK in text:
        return True
    return len(text) >= 617 and _long_number(text[::_STRIDE]) is not None


def has_codec(annotation: Any) -> bool:
    """Tell whether an annotation has a say in how values are written and restored."""
    return annotation is not None and codec_for(annotation) is not None


def encode_plain(value: Any) -> str | None:
    """Return what :func:`encode` returns for a value that is plain JSON; None if it needs a closer look."""
    kind = type(value)
    # Comparing with constants that fit one digit of CPython's integers is the cheapest; most values do.
    if kind is int and (_LEAST < value < _MOST or -_SHORT < value < _SHORT):
        return repr(value)
    if kind is str:
        text = _quote(value)
        return text if "\\u" not in text or ("\\u0000" not in text and "\\ud" not in text) else None
    if kind is dict or kind is list:
        if not _plain(value, 1):
            return None
    elif kind not in _SCALARS:
        return None
    try:
        text = dump(value)
    except ValueError:  # NaN, an infinity, or a number of too many digits
        return None
    return None if _telling(text) else text


def encode(value: Any, annotation: Any = None, *, path: str = "value", max_bytes: int | None = None) -> str:
    """Return a value as compact ASCII JSON text, from which :func:`decode` makes an equal value of the same type.

    The same value gives the same text in every process.

    Args:
        value: anything listed under "Durable values" in the documentation.
        annotation: the annotation of the parameter, field or return value; None where there is none.
        path: how errors call the value, such as ``input[0]``.
        max_bytes: the size limit of the text, in bytes; None for no limit.

    Raises:
        DurableValueError: the value, or something in it, cannot be restored from text, or the text is too long.
    """
    codec = None if annotation is None else codec_for(annotation)
    try:
        text = encode_plain(value) if codec is None else None
        if text is None:
            text = dump(to_tree(value) if codec is None else codec.encode(value, 0))
    except Refusal as refusal:
        raise refusal.error(path) from refusal.__cause__
    except RecursionError:
        raise TooDeep().error(path) from None
    if max_bytes is not None and len(text) > max_bytes:
        raise DurableValueError(
            path,
            f"a value of {len(text):,} bytes is not durable: the limit is {max_bytes:,} bytes; store it elsewhere "
            "and pass the key that finds it",
        )
    return text


def parse(text: str, *, path: str = "value") -> Any:
    """Return the tree of a JSON text, tags and all, for :func:`restore` to make values of its parts.

    Raises:
        DurableValueError: it is no JSON.
    """
    try:
        tree, end = scan(text, 0)
        if end == len(text):
            return tree
    except (StopIteration, ValueError, TypeError, RecursionError):
        pass  # the slow way knows about white space, and what to say
    try:
        return _decoder.decode(text)
    except (ValueError, TypeError) as exc:
        raise DurableValueError(path, f"no JSON: {exc}") from exc
    except RecursionError:
        raise DurableValueError(path, "the JSON is nested too deeply") from None


def restore(tree: Any, annotation: Any = None, *, path: str = "value") -> Any:
    """Return the value of a tree, or of a part of one. The tree is used up.

    Raises:
        DurableValueError: as :func:`decode`.
    """
    codec = None if annotation is None else codec_for(annotation)
    if codec is None and type(tree) is not dict and type(tree) is not list:
        return tree
    try:
        return from_tree(tree) if codec is None else codec.decode(tree)
    except Refusal as refusal:
        raise refusal.error(path) from refusal.__cause__
    except RecursionError:
        raise DurableValueError(path, "the JSON is nested too deeply") from None


def decode(text: str, annotation: Any = None, *, path: str = "value") -> Any:
    """Return the value of a text made by :func:`encode` under the same annotation.

    The text is not trusted: reading it imports and evaluates nothing, and makes instances only of the classes that the
    annotation names, of enumerations already loaded, and of what is registered as a reference.

    Args:
        text: JSON text.
        annotation: the annotation the value was encoded under; None where there is none.
        path: how errors call the value.

    Raises:
        DurableValueError: the text is no JSON, a tag in it is unknown or malformed, or it does not fit the annotation.
    """
    tree = parse(text, path=path)
    if annotation is None or (codec := codec_for(annotation)) is None:
        if TAG_MARK not in text:
            return tree
        codec = None
    try:
        return from_tree(tree) if codec is None else codec.decode(tree)
    except Refusal as refusal:
        raise refusal.error(path) from refusal.__cause__
    except RecursionError:
        raise DurableValueError(path, "the JSON is nested too deeply") from None
