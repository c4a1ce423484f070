"""What a person can do to runs: one by one from a run's page, or to several from the list. Each asks before it acts.

An action says what it needs to know (a form) and which runs it makes sense for, and does its work through the same
functions as any other code. It takes a permission of its own, and who did what is written down as Django's admin does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from django import forms
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import get_content_type_for_model
from django.db import transaction

import continuum
from continuum.arguments import typed_payload
from continuum.exceptions import ContinuumError
from continuum.models import HistoryEvent, Run

__all__ = ["ACTIONS", "Action", "Outcome", "act", "entries_of"]

_MOST_COMMANDS = 500


class SignalForm(forms.Form):
    """What to send."""

    name = forms.CharField(label="Signal", max_length=200, widget=forms.TextInput(attrs={"size": 40}))
    payload = forms.JSONField(
        label="Payload",
        required=False,
        widget=forms.Textarea(attrs={"rows": 4, "cols": 60}),
        help_text="JSON: a text needs quotes. Empty is null.",
    )
    # One for each form that is shown: sending it twice delivers once.
    delivery_id = forms.CharField(widget=forms.HiddenInput, initial=lambda: f"admin {uuid4()}")


class CancelForm(forms.Form):
    """Why."""

    reason = forms.CharField(
        required=False,
        max_length=500,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text="What the run, and its history, are told.",
    )


class RetryForm(forms.Form):
    """Nothing more is to be known."""


class ForkForm(forms.Form):
    """From where."""

    before = forms.ChoiceField(
        label="Before",
        help_text="What happened up to this command is shared; from it on the new run goes on by itself.",
    )

    def __init__(self, *args: Any, runs: list[Run], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        (run,) = runs
        self.fields["before"].choices = _commands(run)


class AttributesForm(forms.Form):
    """What to merge."""

    attributes = forms.JSONField(
        label="Attributes",
        widget=forms.Textarea(attrs={"rows": 5, "cols": 60}),
        help_text='A JSON object, such as {"reviewer": "ada"}. Each key is set as a whole; the others stay.',
    )

    def clean_attributes(self) -> Any:
        value = self.cleaned_data["attributes"]
        if not isinstance(value, dict):
            raise forms.ValidationError("This must be a JSON object.")
        return value


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something that can be done to a run.

    Attributes:
        name: as in addresses and permissions: ``cancel`` takes ``continuum.cancel_run``.
        label: on the button.
        told: what it does, in a sentence, to be read before it is done.
        form: asks for what it needs to know.
        fits: whether it makes sense for a run, as far as its row tells.
        do: does it; returns what was done, for the record, and the run it was done to or that came of it.
        several: whether it can be done to several runs at once.
    """

    name: str
    label: str
    told: str
    form: type[forms.Form]
    fits: Callable[[Run], bool]
    do: Callable[[Run, dict[str, Any], str], tuple[str, Run]]
    several: bool = True

    @property
    def permission(self) -> str:
        """The permission it takes."""
        return f"continuum.{self.name}_run"

    def ask(self, runs: list[Run], data: Any = None) -> forms.Form:
        """Return its form, filled in with what was posted."""
        more = {"runs": runs} if self.form is ForkForm else {}
        return self.form(data, **more)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action on one run: either ``done`` in words and the ``run`` that matters now, or an ``error``."""

    run: Run
    done: str = ""
    error: str = ""


def act(action: Action, run: Run, answers: dict[str, Any], user: Any, alias: str) -> Outcome:
    """Do it, and write down who did; both or neither, where the log is in the same database."""
    try:
        with transaction.atomic(using=alias):
            done, result = action.do(run, answers, alias)
            LogEntry.objects.create(
                user_id=user.pk,
                content_type_id=get_content_type_for_model(Run).pk,
                object_id=str(run.pk),
                object_repr=str(run)[:200],
                action_flag=CHANGE,
                change_message=done,
            )
    except (ContinuumError, ValueError, TypeError) as error:
        return Outcome(run, error=str(error))
    return Outcome(result, done=done)


def entries_of(run: Run) -> list[LogEntry]:
    """Return who did what to a run in the admin, the latest first."""
    found = LogEntry.objects.filter(content_type=get_content_type_for_model(Run), object_id=str(run.pk))
    return list(found.select_related("user").order_by("-action_time")[:50])


def _signal(run: Run, answers: dict[str, Any], alias: str) -> tuple[str, Run]:
    name = answers["name"]
    payload = typed_payload(run, name, answers["payload"])
    sent = continuum.signal(run, name, payload, delivery_id=answers["delivery_id"], using=alias)
    return (f"Sent the signal “{name}”." if sent else f"The signal “{name}” had been sent before."), run


def _cancel(run: Run, answers: dict[str, Any], alias: str) -> tuple[str, Run]:
    reason = answers["reason"]
    continuum.cancel(run, reason=reason, using=alias)
    return f"Asked it to stop: {reason}" if reason else "Asked it to stop.", run


def _retry(run: Run, answers: dict[str, Any], alias: str) -> tuple[str, Run]:
    return "Had it go on from where it failed.", continuum.retry(run, using=alias)


def _fork(run: Run, answers: dict[str, Any], alias: str) -> tuple[str, Run]:
    forked = continuum.fork(run, before=answers["before"], using=alias)
    return f"Forked it before {answers['before']} as run {forked.pk}.", forked


def _set_attributes(run: Run, answers: dict[str, Any], alias: str) -> tuple[str, Run]:
    attributes = answers["attributes"]
    continuum.set_attributes(run, attributes, using=alias)
    return f"Set attributes: {json.dumps(attributes, ensure_ascii=False)}", run


def _commands(run: Run) -> list[tuple[str, str]]:
    """Return the commands of a run's history in their order, each with what it was."""
    events = HistoryEvent.objects.using(run._state.db).filter(run_id=run.pk, command_id__isnull=False)
    found: dict[str, str] = {}
    for command_id, name, type_ in events.order_by("seq").values_list("command_id", "name", "type")[:_MOST_COMMANDS]:
        found.setdefault(command_id, f"{command_id}  {name or type_.replace('_', ' ')}")
    return list(found.items())


#: Every action by name, in the order of the buttons.
ACTIONS = {
    action.name: action
    for action in (
        Action(
            name="signal",
            label="Signal",
            told="The run gets this signal as soon as it asks for it.",
            form=SignalForm,
            fits=lambda run: not run.is_terminal or run.continued_to_run_id is not None,
            do=_signal,
        ),
        Action(
            name="cancel",
            label="Cancel",
            told="The run, and all its live descendants, are asked to stop. They clean up first.",
            form=CancelForm,
            fits=lambda run: not run.is_terminal or run.continued_to_run_id is not None,
            do=_cancel,
        ),
        Action(
            name="retry",
            label="Retry",
            told="The run goes on from where it failed: what succeeded is kept, what failed runs again.",
            form=RetryForm,
            fits=lambda run: run.state == Run.State.FAILED and run.continued_to_run_id is None,
            do=_retry,
        ),
        Action(
            name="fork",
            label="Fork",
            told="Another run is started that shares this one's history up to a point. This one is left as it is.",
            form=ForkForm,
            fits=lambda run: run.claimed_at is not None,
            do=_fork,
            several=False,
        ),
        Action(
            name="set_attributes",
            label="Set attributes",
            told="These attributes are merged into those of the run. Its code does not see them.",
            form=AttributesForm,
            fits=lambda run: True,
            do=_set_attributes,
        ),
    )
}
