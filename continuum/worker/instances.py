"""Model instances for activities: the references among an attempt's arguments, replaced by what they refer to.

Loading is part of the attempt: it happens in its thread and in its transaction, where it has one, so that the activity
sees the rows as they are now.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.connection import ConnectionDoesNotExist

from continuum.references import InstanceNotFoundError, model_of
from continuum.values import ModelRef
from continuum.values.model_refs import MODEL_TAG
from continuum.values.signatures import class_annotations

if TYPE_CHECKING:
    from continuum.worker.attempt import Attempt

__all__ = ["aload", "load"]

Arguments = tuple[list[Any], dict[str, Any]]

# How a reference shows in the text: arguments without one pay for no walk.
_MARK = f'"~{MODEL_TAG}"'


def load(attempt: Attempt, args: list[Any], kwargs: dict[str, Any]) -> Arguments:
    """Return the arguments of an attempt with fresh model instances in place of references.

    One query for all instances of a model. References stay where the annotation asks for ``ModelRef``.

    Raises:
        InstanceNotFoundError: a row, its model or its database does not exist.
    """
    if _MARK not in attempt.args_json:
        return args, kwargs
    parameters = attempt.definition.parameters
    kept = [_keeps(parameters.at(index)) for index in range(len(args))]
    kept_names = {name for name in kwargs if _keeps(parameters.named(name))}

    def replaced(swap: Callable[[ModelRef], Any]) -> Arguments:
        return (
            [arg if keep else _replace(arg, swap) for arg, keep in zip(args, kept, strict=True)],
            {name: arg if name in kept_names else _replace(arg, swap) for name, arg in kwargs.items()},
        )

    wanted: dict[ModelRef, None] = {}

    def note(ref: ModelRef) -> ModelRef:
        wanted[ref] = None
        return ref

    replaced(note)
    return replaced(_loaded(wanted).__getitem__)


async def aload(attempt: Attempt, args: list[Any], kwargs: dict[str, Any]) -> Arguments:
    """``load`` for attempts on the loop: the query runs in the thread where the ORM's async methods run."""
    if _MARK not in attempt.args_json:
        return args, kwargs
    return await sync_to_async(load)(attempt, args, kwargs)


# -- finding ----------------------------------------------------------------------------------------------------


def _replace(value: Any, swap: Callable[[ModelRef], Any]) -> Any:
    """Swap every reference in a value just decoded, which nobody else holds: dataclasses are changed in place."""
    kind = type(value)
    if kind is ModelRef:
        return swap(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return kind([_replace(item, swap) for item in value])
    if kind is dict:
        return {_replace(key, swap): _replace(item, swap) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        kept = _kept_fields(kind)
        for field in dataclasses.fields(kind):
            if field.name not in kept:
                item = getattr(value, field.name)
                swapped = _replace(item, swap)
                if swapped is not item:
                    object.__setattr__(value, field.name, swapped)
        return value
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        kept = _kept_fields(kind)
        return kind._make(  # type: ignore[attr-defined]
            [
                item if name in kept else _replace(item, swap)
                for name, item in zip(kind._fields, value, strict=True)  # type: ignore[attr-defined]
            ]
        )
    return value


@lru_cache(maxsize=1024)
def _kept_fields(kind: type) -> frozenset[str]:
    """The fields of a class that are to hold references."""
    return frozenset(name for name, hint in class_annotations(kind).items() if _keeps(hint))


def _keeps(annotation: Any) -> bool:
    """Whether an annotation asks for references: it names ``ModelRef``, and no model."""
    named = set(_named(annotation))
    return ModelRef in named and not any(isinstance(name, type) and issubclass(name, models.Model) for name in named)


def _named(annotation: Any) -> Iterable[Any]:
    if type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    args = typing.get_args(annotation)
    if not args:
        if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
            yield annotation
        return
    for arg in args:
        yield from _named(arg)


# -- loading ----------------------------------------------------------------------------------------------------


def _loaded(refs: Iterable[ModelRef]) -> dict[ModelRef, models.Model]:
    """Return the instance of each reference."""
    groups: dict[tuple[str, str], list[ModelRef]] = {}
    for ref in refs:
        groups.setdefault((ref.label, ref.using), []).append(ref)
    found: dict[ModelRef, models.Model] = {}
    for group in groups.values():
        found.update(_fetched(group))
    return found


def _fetched(refs: list[ModelRef]) -> dict[ModelRef, models.Model]:
    """Return the instances of references to one model in one database."""
    first = refs[0]
    try:
        model = model_of(first)
    except LookupError as error:
        raise InstanceNotFoundError(first.label, first.pk, first.using, str(error)) from error
    keys = {ref: _key(model, ref) for ref in refs}
    # The base manager, as for a relation: what a project's own manager hides from lists is there all the same.
    rows = model._base_manager.using(first.using).filter(pk__in=list(set(keys.values())))
    try:
        instances = {row.pk: row for row in rows}
    except ConnectionDoesNotExist as error:
        raise InstanceNotFoundError(first.label, first.pk, first.using, str(error)) from error
    for ref, key in keys.items():
        if key not in instances:
            raise InstanceNotFoundError(ref.label, ref.pk, ref.using)
    return {ref: instances[key] for ref, key in keys.items()}


def _key(model: type[models.Model], ref: ModelRef) -> Any:
    """Return a primary key as the model's rows have it: ``"5"`` finds row 5."""
    fields = model._meta.pk_fields
    composite = len(fields) > 1
    parts = ref.pk if composite and isinstance(ref.pk, tuple) else (ref.pk,)
    try:
        key = tuple(field.to_python(part) for field, part in zip(fields, parts, strict=True))
    except (ValidationError, ValueError, TypeError) as error:
        raise InstanceNotFoundError(ref.label, ref.pk, ref.using, "that is no primary key of it") from error
    return key if composite else key[0]
