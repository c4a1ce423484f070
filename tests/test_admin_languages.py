"""The admin in other languages: numbers that mean something to a program look the same in all of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from django.urls import reverse

from continuum.models import HistoryEvent, Worker
from tests.factories import HistoryEventFactory, RunFactory, WorkerFactory

pytestmark = pytest.mark.django_db

MEANT_FOR_PROGRAMS = ("class", "d", "datetime", "height", "href", "id", "name", "value", "viewbox", "width", "x", "y")


class Attributes(HTMLParser):
    """The attributes of a page that programs read, in its order."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, *each) for each in attrs if each[0] in MEANT_FOR_PROGRAMS or each[0].startswith("data-")]


@pytest.fixture
def run():
    """A run whose numbers have four digits and more."""
    began = datetime.now(UTC) - timedelta(days=2000)
    worker = WorkerFactory(id=12_345, name="")
    run = RunFactory(
        state="suspended", started_at=began, claimed_at=began, version=1234, owner_id=worker.id, priority=4321
    )
    HistoryEventFactory.reset_sequence(1200)
    HistoryEvent.objects.bulk_create(HistoryEventFactory.build_batch(600, run=run, recorded_at=began))
    RunFactory(state="suspended", parent_run_id=run.id, parent_command_id="0:1")
    return run


@pytest.fixture(params=["de", "ar"])
def speak(request, settings):
    """Have the project speak the language from now on, with separators wherever a number may have them."""

    def speak():
        settings.LANGUAGE_CODE, settings.USE_THOUSAND_SEPARATOR = request.param, True

    return speak


def test_the_page_of_a_run_has_the_same_addresses_keys_and_shapes(run, speak, admin_client):
    address = reverse("admin:continuum_run_fragment", args=[run.pk])
    before = Attributes(admin_client.get(address, {"before": 1790}).content.decode()).found
    assert ("tr", "id", "event-1789") in before
    assert ("a", "href", "?before=1290") in before
    speak()
    assert Attributes(admin_client.get(address, {"before": 1790}).content.decode()).found == before


def test_what_the_page_of_a_run_leads_to_is_there(run, speak, admin_client):
    speak()
    page = admin_client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
    targets = set(re.findall(r'href="#([^"]+)"', page)) - {"content-start"}
    assert targets
    assert targets <= set(re.findall(r' id="([^"]+)"', page))
    (older,) = re.findall(r'href="(\?before=[^"]+)"', page)
    older = admin_client.get(reverse("admin:continuum_run_change", args=[run.pk]) + older).content.decode()
    assert 'id="event-1300"' in older
    assert 'id="event-1301"' not in older


def test_ids_are_shown_as_they_are_typed(run, speak, admin_client):
    Worker.objects.update(pid=54_321)
    speak()
    for name, arguments in (("worker_changelist", []), ("worker_change", [12_345])):
        assert "54321" in admin_client.get(reverse(f"admin:continuum_{name}", args=arguments)).content.decode()
    page = admin_client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
    assert "worker 12345" in page
    assert '<td class="continuum-number">1799</td>' in page
    assert "<dd>4321</dd>" in page


def test_the_dashboard_draws_what_a_browser_understands(run, speak, admin_client):
    now = datetime.now(UTC)
    for number in range(7):
        RunFactory(ended=True, completed_at=now - timedelta(minutes=9 * number + 1))
    speak()
    page = admin_client.get(reverse("admin:continuum_dashboard_fragment"), {"range": "1h"}).content.decode()
    found = [each for each in Attributes(page).found if each[0] == "rect" and each[1] != "class"]
    assert len([each for each in found if each[1] == "height" and each[2] != "100"]) == 7
    assert [each for each in found if not re.fullmatch(r"\d+(\.\d+)?", each[2])] == []


def test_what_we_write_is_said_to_be_english_from_left_to_right(run, speak, admin_client):
    """Else “3 h ago” reads “h ago 3” in a page from right to left, and the ends of an axis change places."""
    speak()
    for name, arguments in (("run_change", [run.pk]), ("run_do", [run.pk, "signal"]), ("dashboard_changelist", [])):
        page = admin_client.get(reverse(f"admin:continuum_{name}", args=arguments)).content.decode()
        assert re.search(r'<div id="content-main" class="continuum-run[^"]*" lang="en" dir="ltr"', page)
