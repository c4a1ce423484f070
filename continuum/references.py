"""Django model instances as durable values: they travel as references, as :class:`ModelRef` describes."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS
from django.db.models import Model

from continuum.exceptions import NonRetryableError
from continuum.values import ModelRef, register_reference
from continuum.values.model_refs import MODEL_TAG, read_model_ref, write_model_ref

__all__ = ["InstanceNotFoundError", "is_reference_to", "model_of", "reference_to", "register"]


class InstanceNotFoundError(NonRetryableError, LookupError):
    """An activity was given a reference to a model instance that cannot be loaded. It is not tried again.

    Attributes:
        label: the model, ``"shop.Order"``.
        pk: the primary key.
        using: the database alias.
        reason: why, where it is not simply that the row does not exist (any more).
    """

    def __init__(self, label: str, pk: Any, using: str, reason: str = "") -> None:
        message = f"there is no {label} with primary key {pk!r} in database {using!r}" + (reason and f": {reason}")
        plain = pk if isinstance(pk, int | str) else str(pk)
        super().__init__(message, {"label": label, "pk": plain, "using": using})
        self.args = (label, pk, using, reason)
        self.label, self.pk, self.using, self.reason = label, pk, using, reason


def register() -> None:
    """Let the codec take model instances. Reading a value makes a :class:`ModelRef`, whatever was written."""
    register_reference(MODEL_TAG, (ModelRef, Model), _write, read_model_ref)


def _write(value: Any) -> list[Any]:
    return write_model_ref(value if isinstance(value, ModelRef) else reference_to(value))


def reference_to(instance: Model) -> ModelRef:
    """Return what finds a model instance again.

    The label is that of the instance's own class, so a proxy or a multi-table child comes back as what it was.

    Raises:
        ValueError: the instance is not in the database, as far as it knows.
    """
    if instance._state.adding or not _has_pk(instance):
        raise ValueError("it is not in the database: save it first, as it travels as a reference to its row")
    return ModelRef(instance._meta.label, instance.pk, instance._state.db or DEFAULT_DB_ALIAS)


def _has_pk(instance: Model) -> bool:
    pk = instance.pk
    return None not in pk if isinstance(pk, tuple) else pk is not None


def model_of(ref: ModelRef) -> type[Model]:
    """Return the class a reference is about.

    Raises:
        LookupError: no installed app has such a model.
    """
    return apps.get_model(ref.label)


def is_reference_to(wanted: type, value: Any) -> bool:
    """Whether a value stands for an instance of a model, or is an instance where a reference is wanted."""
    if wanted is ModelRef:
        return isinstance(value, Model)
    if not (isinstance(value, ModelRef) and issubclass(wanted, Model)):
        return False
    try:
        return issubclass(model_of(value), wanted)
    except LookupError:
        return False
