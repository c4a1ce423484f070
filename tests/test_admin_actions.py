"""Acting on runs in the admin: who may, what is asked first, what happens, and what is written down."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.urls import reverse

import continuum
from continuum.admin import asking
from continuum.admin.acting import ACTIONS
from continuum.models import InboxMessage, Run
from tests.app.workflows import Order
from tests.factories import HistoryEventFactory, RunFactory
from tests.test_admin import HOSTILE, Page

pytestmark = pytest.mark.django_db


@continuum.workflow(name="tests.admin_actions.sells", signals={"order": Order})
async def sells(): ...


NOW = datetime.now(UTC)
LIST = "admin:continuum_run_changelist"
ANSWERS = {
    "signal": {"name": "go", "payload": '{"by": "ada"}', "delivery_id": "d"},
    "cancel": {"reason": "ordered twice"},
    "retry": {},
    "fork": {"before": "0:1"},
    "set_attributes": {"attributes": '{"reviewer": "ada"}'},
}


def page_of(run, action):
    return reverse("admin:continuum_run_do", args=[run.pk, action])


def failed_run():
    """A run that everything can be done to, but for signals and cancelling."""
    run = RunFactory(state="failed", claimed_at=NOW, completed_at=NOW)
    HistoryEventFactory(run=run, seq=1)
    HistoryEventFactory(run=run, seq=2, type="run_failed", command_id=None, name=None)
    return run


def run_for(action):
    return failed_run() if action in ("retry", "fork") else RunFactory(state="suspended", claimed_at=NOW)


def told(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


@pytest.fixture
def staff(client):
    """Log somebody in with these permissions, besides that to view runs."""

    def staff(*codenames):
        user = User.objects.create_user("ops", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=("view_run", *codenames)))
        client.force_login(user)
        return client

    return staff


class TestWhoMay:
    @pytest.mark.parametrize("action", ACTIONS)
    def test_each_action_takes_a_permission_of_its_own(self, staff, action):
        run = run_for(action)
        others = [f"{name}_run" for name in ACTIONS if name != action]
        client = staff(*others)
        assert client.get(page_of(run, action)).status_code == 403
        assert client.post(page_of(run, action), ANSWERS[action]).status_code == 403
        page = client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
        assert page_of(run, action) not in page
        assert not LogEntry.objects.exists()
        assert not InboxMessage.objects.exists()
        assert Run.objects.get().attributes == {}

    @pytest.mark.parametrize("action", ACTIONS)
    def test_with_it_one_may(self, staff, action):
        run = run_for(action)
        client = staff(f"{action}_run")
        page = client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
        assert page_of(run, action) in page
        assert client.get(page_of(run, action)).status_code == 200
        assert client.post(page_of(run, action), ANSWERS[action]).status_code == 302

    def test_who_only_looks_is_offered_nothing(self, staff):
        run = failed_run()
        client = staff()
        assert client.get(reverse(LIST)).context["action_form"] is None
        assert "/do/" not in client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
        client.post(reverse(LIST), {"action": "retry", "confirmed": "yes", ACTION_CHECKBOX_NAME: [run.pk]})
        assert Run.objects.get().state == "failed"

    def test_who_may_act_but_not_look_may_not(self, client):
        user = User.objects.create_user("x", is_staff=True)
        user.user_permissions.add(Permission.objects.get(codename="cancel_run"))
        client.force_login(user)
        assert client.post(page_of(RunFactory(), "cancel"), {"reason": ""}).status_code == 403
        assert not InboxMessage.objects.exists()


class TestOneRun:
    @pytest.mark.parametrize("action", ACTIONS)
    def test_asking_does_nothing(self, admin_client, action):
        run = run_for(action)
        response = admin_client.get(page_of(run, action))
        assert ACTIONS[action].told.replace("'", "&#x27;") in response.content.decode()
        assert Page(response.content.decode()).inline == []
        assert not LogEntry.objects.exists()
        assert not InboxMessage.objects.exists()

    def test_a_signal_is_sent_once_however_often_the_form_is(self, admin_client):
        run = RunFactory(state="suspended")
        (delivery,) = re.findall(
            r'name="delivery_id" value="([^"]+)"', admin_client.get(page_of(run, "signal")).content.decode()
        )
        for words in ("Sent the signal “go”.", "The signal “go” had been sent before."):
            response = admin_client.post(
                page_of(run, "signal"), {"name": "go", "payload": "[1]", "delivery_id": delivery}
            )
            assert told(response)[-1:] == [words]
        message = InboxMessage.objects.get()
        assert (message.kind, message.name, message.payload) == ("signal", "go", [1])

    def test_a_signal_is_read_as_the_type_that_is_declared(self, admin_client):
        run = RunFactory(workflow=sells.name, state="suspended")
        answers = {"name": "order", "payload": '{"id": "o1", "total": {"~decimal": "1.50"}}', "delivery_id": "d"}
        assert told(admin_client.post(page_of(run, "signal"), answers))[-1:] == ["Sent the signal “order”."]
        assert InboxMessage.objects.get().payload == {"id": "o1", "total": Decimal("1.50")}
        answers |= {"payload": '{"id": "o1"}', "delivery_id": "e"}
        assert "Order needs total" in str(Page(admin_client.post(page_of(run, "signal"), answers).content.decode()))

    def test_cancelling_gives_the_reason(self, admin_client):
        run = RunFactory(state="suspended")
        admin_client.post(page_of(run, "cancel"), {"reason": "ordered twice"})
        assert InboxMessage.objects.get().payload == {"reason": "ordered twice"}

    def test_retrying_lets_the_run_go_on(self, admin_client):
        run = failed_run()
        response = admin_client.post(page_of(run, "retry"))
        assert response.url == reverse("admin:continuum_run_change", args=[run.pk])
        assert Run.objects.get().state == "suspended"

    def test_forking_leads_to_the_new_run(self, admin_client):
        run = failed_run()
        assert '<option value="0:1">0:1  charge</option>' in admin_client.get(page_of(run, "fork")).content.decode()
        response = admin_client.post(page_of(run, "fork"), {"before": "0:1"})
        forked = Run.objects.get(forked_from_run_id=run.pk)
        assert response.url == reverse("admin:continuum_run_change", args=[forked.pk])

    def test_attributes_are_merged(self, admin_client):
        run = RunFactory(attributes={"plan": "pro"})
        admin_client.post(page_of(run, "set_attributes"), {"attributes": '{"reviewer": "ada"}'})
        assert Run.objects.get().attributes == {"plan": "pro", "reviewer": "ada"}

    @pytest.mark.parametrize(
        ("action", "answers", "complaint"),
        [
            ("signal", {"name": "", "delivery_id": "d"}, "This field is required"),
            ("signal", {"name": "go", "payload": "approved", "delivery_id": "d"}, "valid JSON"),
            ("set_attributes", {"attributes": "[1]"}, "must be a JSON object"),
            ("set_attributes", {"attributes": '{"a": "\\u0000"}'}, "NUL"),
            ("fork", {"before": "9:9"}, "Select a valid choice"),
        ],
    )
    def test_wrong_answers_are_sent_back_with_a_sentence(self, admin_client, action, answers, complaint):
        response = admin_client.post(page_of(run_for(action), action), answers)
        assert response.status_code == 200
        assert complaint in str(Page(response.content.decode()))
        assert "Nothing was done." in response.content.decode()
        assert not LogEntry.objects.exists()

    @pytest.mark.parametrize("action", ["signal", "cancel", "retry"])
    def test_what_the_run_refuses_is_said_in_its_words(self, admin_client, action):
        run = RunFactory(ended=True)
        response = admin_client.post(page_of(run, action), ANSWERS[action])
        assert response.status_code == 200
        assert "completed" in str(Page(response.content.decode()))
        assert not LogEntry.objects.exists()
        assert not InboxMessage.objects.exists()

    def test_only_what_makes_sense_has_a_button(self, admin_client):
        def offered(run):
            page = admin_client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
            return set(re.findall(r"/do/(\w+)/", page))

        assert offered(RunFactory()) == {"signal", "cancel", "set_attributes"}
        assert offered(RunFactory(state="suspended", claimed_at=NOW)) == {"signal", "cancel", "fork", "set_attributes"}
        assert offered(failed_run()) == {"retry", "fork", "set_attributes"}
        assert offered(RunFactory(ended=True)) == {"fork", "set_attributes"}
        assert offered(RunFactory(ended=True, continued_to_run_id=RunFactory().pk)) >= {"signal", "cancel"}

    def test_an_unknown_action_or_run_is_not_found(self, admin_client):
        assert admin_client.get(page_of(RunFactory(), "explode")).status_code == 404
        assert admin_client.get(page_of(RunFactory.build(), "cancel")).status_code == 404


class TestTheRecord:
    @pytest.mark.parametrize("action", ACTIONS)
    def test_says_who_did_what(self, staff, action):
        run = run_for(action)
        client = staff(f"{action}_run")
        client.post(page_of(run, action), ANSWERS[action])
        entry = LogEntry.objects.get()
        assert (entry.user.username, entry.object_id) == ("ops", str(run.pk))
        page = str(Page(client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()))
        assert "Who did what" in page
        assert entry.change_message.split(":")[0] in page

    def test_is_not_kept_without_the_deed(self, admin_client, monkeypatch):
        run = RunFactory(state="suspended")

        def fail(*args, **kwargs):
            raise ValueError("no room for the record")

        monkeypatch.setattr(LogEntry.objects, "create", fail)
        admin_client.post(page_of(run, "cancel"), {"reason": ""})
        assert not InboxMessage.objects.exists()

    def test_shows_hostile_words_as_words(self, admin_client):
        run = RunFactory(state="suspended")
        admin_client.post(page_of(run, "cancel"), {"reason": HOSTILE})
        assert (
            "<script>alert"
            not in admin_client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
        )


class TestSeveralRuns:
    def choose(self, client, action, runs, **answers):
        data = {"action": action, ACTION_CHECKBOX_NAME: [str(run.pk) for run in runs], **answers}
        return client.post(reverse(LIST), data)

    def test_asks_first_and_names_them(self, admin_client):
        runs = RunFactory.create_batch(3, state="suspended")
        page = self.choose(admin_client, "cancel", runs).content.decode()
        assert all(f'value="{run.pk}"' in page for run in runs)
        assert "Cancel 3 runs" in page
        assert not InboxMessage.objects.exists()

    @pytest.mark.parametrize("action", [name for name, action in ACTIONS.items() if action.several])
    def test_acts_on_each_and_writes_each_down(self, admin_client, action):
        runs = [run_for(action) for _ in range(3)]
        response = self.choose(admin_client, action, runs, confirmed="yes", **ANSWERS[action])
        assert response.status_code == 302
        assert told(response) == [f"{ACTIONS[action].label}: done for 3 runs."]
        assert LogEntry.objects.count() == 3

    def test_those_that_refuse_do_not_keep_the_others_from_it(self, admin_client):
        runs = [RunFactory(ended=True), failed_run(), RunFactory()]
        response = self.choose(admin_client, "retry", runs, confirmed="yes")
        words = told(response)
        assert words[0] == "Retry: done for 1 run."
        assert len(words) == 3
        assert Run.objects.filter(state="suspended").count() == 1

    def test_wrong_answers_are_asked_again(self, admin_client):
        runs = RunFactory.create_batch(2, state="suspended")
        page = self.choose(
            admin_client, "signal", runs, confirmed="yes", name="go", payload="{", delivery_id="d"
        ).content.decode()
        assert "valid JSON" in page
        assert all(f'value="{run.pk}"' in page for run in runs)
        assert not InboxMessage.objects.exists()

    def test_too_many_at_once_are_refused(self, admin_client, monkeypatch):
        monkeypatch.setattr(asking, "MOST_AT_ONCE", 2)
        response = self.choose(admin_client, "cancel", RunFactory.create_batch(3), confirmed="yes", reason="")
        assert told(response)[0].startswith("Choose at most 2 runs")
        assert not InboxMessage.objects.exists()

    def test_forking_is_for_one(self, admin_client):
        choices = admin_client.get(reverse(LIST)).context["action_form"]
        assert choices is None or "fork" not in dict(choices.fields["action"].choices)

    def test_only_by_post(self, admin_client):
        run = RunFactory(state="suspended")
        admin_client.get(
            reverse(LIST), {"action": "cancel", "confirmed": "yes", ACTION_CHECKBOX_NAME: str(run.pk), "reason": ""}
        )
        assert not InboxMessage.objects.exists()

    def test_without_a_token_nothing_happens(self):
        from django.test import Client

        client = Client(enforce_csrf_checks=True)
        client.force_login(User.objects.create_superuser("root"))
        run = RunFactory(state="suspended")
        assert client.post(page_of(run, "cancel"), {"reason": ""}).status_code == 403
        assert self.choose(client, "cancel", [run], confirmed="yes", reason="").status_code == 403
        assert not InboxMessage.objects.exists()
