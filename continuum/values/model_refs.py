"""References to rows of a Django project. Nothing here knows Django: what loads the rows is further up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from continuum.values.references import register_reference

__all__ = ["MODEL_TAG", "ModelRef", "read_model_ref", "write_model_ref"]

MODEL_TAG = "model"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A Django model instance as workflow code sees it: not the row, only what finds it.

    An instance that is passed to a run, an activity, a child or a signal, or that an activity returns, becomes one. An
    activity that is given it receives the instance, loaded when the attempt begins; one whose parameter is annotated
    with ``ModelRef`` receives the reference.

    Attributes:
        label: the model, ``"shop.Order"``.
        pk: the primary key, a durable value; a tuple where it is composite.
        using: the database alias the row is in.
    """

    label: str
    pk: Any
    using: str = "default"

    def __post_init__(self) -> None:
        label = self.label
        if not isinstance(label, str):
            raise TypeError(f"label must be a string such as 'shop.Order', not {label!r}")
        app, dot, model = label.partition(".")
        if not dot or not app.isidentifier() or not model.isidentifier():
            raise ValueError(f"label must be an app label and a model name such as 'shop.Order', not {label!r}")
        if self.pk is None:
            raise ValueError("pk must not be None: a row without a primary key cannot be found again")
        try:
            hash(self.pk)
        except TypeError:
            raise TypeError(
                f"pk must be the value of a primary key, a tuple where it is composite, not {self.pk!r}"
            ) from None
        if not isinstance(self.using, str):
            raise TypeError(f"using must be a database alias, not {self.using!r}")
        if not self.using:
            raise ValueError("using must be a database alias, not an empty string")

    def __str__(self) -> str:
        return f"{self.label} {self.pk}" + (f" in {self.using!r}" if self.using != "default" else "")


def write_model_ref(ref: ModelRef) -> list[Any]:
    """Return what a reference is stored as."""
    return [ref.label, ref.pk, ref.using]


def read_model_ref(stored: Any) -> ModelRef:
    """Return the reference that is stored as ``stored``."""
    if type(stored) is not list or len(stored) != 3:
        raise ValueError("it holds [label, primary key, database alias]")
    return ModelRef(*stored)


register_reference(MODEL_TAG, ModelRef, write_model_ref, read_model_ref)
