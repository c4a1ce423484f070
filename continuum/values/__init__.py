"""Durable values: Python values as JSON text, and back again without loss.

What JSON can hold is written as it is. Everything else becomes a *tag*, an object with one key that starts with ``~``:
``{"~datetime": "2024-05-01T12:00:00+00:00"}``. A dictionary that looks like a tag is itself written as one, so nothing
that a user stores can be mistaken. Dataclasses, named tuples and pydantic models are written as plain objects, and so
are restored only where an annotation says what they were; where none reaches, they are refused rather than degraded.

The text is compact ASCII. It is meant for PostgreSQL's ``json`` type, which keeps it to the letter (``jsonb`` would
sort keys and rewrite numbers), and every string in it can be read by ``->>``.

Nothing here imports, evaluates or calls what the text names. The modules, from the ground up: ``refusals`` (errors
that find their path), ``scalars`` and ``enums`` (single values), ``references`` (values kept elsewhere) and
``model_refs`` (rows), ``trees`` (any value to a JSON tree and back), ``codecs``, ``classes``, ``unions`` and
``annotations`` (the same under an annotation), ``jsontext`` (trees and text), ``signatures`` (what a function's
annotations are), ``readable`` (for people).
"""

from continuum.values.jsontext import TAG_MARK, decode, encode, encode_plain, has_codec, parse, restore, scan
from continuum.values.model_refs import ModelRef
from continuum.values.readable import display
from continuum.values.references import register_reference
from continuum.values.signatures import ParameterAnnotations, parameter_annotations, return_annotation

__all__ = [
    "TAG_MARK",
    "ModelRef",
    "ParameterAnnotations",
    "decode",
    "display",
    "encode",
    "encode_plain",
    "has_codec",
    "parameter_annotations",
    "parse",
    "register_reference",
    "restore",
    "return_annotation",
    "scan",
]
