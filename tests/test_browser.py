"""The admin in a real browser: headless Chromium, a strict content policy, scripts on and off.

Needs the extra ``browser`` and a Chromium (``CHROMIUM`` names it, else it is looked for), and is skipped without.
``tox -e browser`` runs it.
"""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from continuum.models import InboxMessage, Run
from tests.factories import HistoryEventFactory, RunFactory, WorkerFactory

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.django_db(transaction=True),
    pytest.mark.browser,
]

# A browser asks for an icon that there is none of; and the test of a failing server has it fail.
_EXPECTED = ("favicon", "404", "ERR_FAILED")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'"
)
PHONE = {"width": 390, "height": 800}
NOW = datetime.now(UTC)


class StrictPolicy:
    """Middleware that lets a browser enforce what the pages are said to keep to."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response["Content-Security-Policy"] = POLICY
        return response


@pytest.fixture(scope="module")
def chromium():
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        # The driver's loop runs in this thread, and Django takes that for asynchronous code.
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
        yield browser
        os.environ.pop("DJANGO_ALLOW_ASYNC_UNSAFE")
        browser.close()


@pytest.fixture
def tab(chromium, live_server, client, settings):
    """Open a tab as a superuser: ``tab(java_script_enabled=False)``. No page may break the policy or log an error."""
    settings.MIDDLEWARE = ["tests.test_browser.StrictPolicy", *settings.MIDDLEWARE]
    client.force_login(User.objects.create_superuser("root"))
    session = {"name": settings.SESSION_COOKIE_NAME, "value": client.cookies[settings.SESSION_COOKIE_NAME].value}
    complaints, contexts = [], []

    def tab(**options):
        context = chromium.new_context(base_url=live_server.url, **options)
        contexts.append(context)
        context.add_cookies([session | {"url": live_server.url}])
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield tab
    for context in contexts:
        context.close()
    assert [text for text in complaints if not any(known in text for known in _EXPECTED)] == []


def page_of(run):
    return reverse("admin:continuum_run_change", args=[run.pk])


def a_live_run():
    run = RunFactory(state="suspended", started_at=NOW - timedelta(minutes=1), claimed_at=NOW, workflow="shop.orders")
    HistoryEventFactory(run=run, seq=1, data={"result": "x" * 200})
    return run


class TestLiveness:
    def test_the_page_of_a_run_follows_it_to_its_end_and_then_rests(self, tab):
        run, page = a_live_run(), tab()
        page.clock.install()
        page.goto(page_of(run))
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "fragment" in request.url else None)
        page.locator("details summary").first.click()
        HistoryEventFactory(run=run, seq=2, name="late_activity")
        page.locator("#event-2").wait_for()
        assert page.locator("details").first.get_attribute("open") is not None
        Run.objects.filter(pk=run.pk).update(state="completed", completed_at=NOW)
        page.get_by_text("completed", exact=True).first.wait_for()
        number = len(asked)
        page.clock.run_for(60_000)
        assert len(asked) == number

    def test_what_is_being_selected_is_left_alone(self, tab):
        run, page = a_live_run(), tab()
        page.clock.install()
        page.goto(page_of(run))
        page.evaluate("getSelection().selectAllChildren(document.querySelector('.continuum-facts'))")
        HistoryEventFactory(run=run, seq=2)
        page.clock.run_for(60_000)
        assert page.locator("#event-2").count() == 0
        page.evaluate("getSelection().removeAllRanges()")
        page.locator("#event-2").wait_for()

    def test_what_takes_long_to_make_is_asked_for_less_often(self, tab):
        run, page = a_live_run(), tab()
        page.clock.install(time=NOW)
        page.clock.pause_at(NOW + timedelta(seconds=1))  # from here on it goes on when it is told to
        page.goto(page_of(run))
        page.evaluate("let now = 0; performance.now = () => (now += 1500)")
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "fragment" in request.url else None)
        HistoryEventFactory(run=run, seq=2)
        page.clock.run_for(2_000)
        page.locator("#event-2").wait_for()
        HistoryEventFactory(run=run, seq=3)
        page.clock.run_for(12_000)
        assert len(asked) == 1
        page.clock.run_for(4_000)
        page.locator("#event-3").wait_for()
        assert len(asked) == 2

    def test_the_dashboard_follows(self, tab):
        page = tab()
        page.goto(reverse("admin:continuum_dashboard_changelist"))
        RunFactory(state="stuck_unknown_version", workflow="shop.refunds")
        page.get_by_text("parked for want of matching code").wait_for()

    def test_a_server_that_fails_for_a_while_is_asked_again(self, tab):
        run, page = a_live_run(), tab()
        failing = [True]
        page.route("**/fragment/", lambda route: route.abort() if failing else route.continue_())
        page.goto(page_of(run))
        with page.expect_event("requestfailed"):
            pass
        failing.clear()
        HistoryEventFactory(run=run, seq=2)
        page.locator("#event-2").wait_for()


class TestWithoutScripts:
    def test_everything_but_the_liveness_works(self, tab):
        run, page = a_live_run(), tab(java_script_enabled=False)
        page.goto(page_of(run))
        assert page.locator("svg.continuum-bar").count() >= 1
        page.get_by_role("link", name="Signal").click()
        page.locator("#id_name").fill("go")
        page.locator("#id_payload").fill('{"by": "ada"}')
        page.locator("input[type=submit]").click()
        page.get_by_text("Sent the signal “go”.").first.wait_for()
        assert InboxMessage.objects.get().payload == {"by": "ada"}


class TestByHand:
    def test_runs_can_be_acted_on_by_keyboard(self, tab):
        run, page = a_live_run(), tab()
        page.goto(page_of(run))
        page.get_by_role("link", name="Cancel").focus()
        page.keyboard.press("Enter")
        page.locator("#id_reason").focus()
        page.keyboard.type("ordered twice")
        page.keyboard.press("Enter")
        page.get_by_text("Asked it to stop: ordered twice").first.wait_for()
        assert InboxMessage.objects.get().payload == {"reason": "ordered twice"}

    def test_several_runs_are_chosen_in_the_list(self, tab):
        RunFactory.create_batch(3, state="failed", completed_at=NOW)
        page = tab()
        page.goto(reverse("admin:continuum_run_changelist"))
        page.locator("#action-toggle").check()
        page.locator("select[name=action]").select_option("retry")
        page.locator("button[name=index]").click()
        page.get_by_role("button", name="Retry 3 runs").click()
        page.get_by_text("Retry: done for 3 runs.").wait_for()
        assert Run.objects.filter(state="suspended").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["dashboard", "runs", "run", "ask"])
def test_nothing_sticks_out_on_a_phone(tab, name, scheme):
    run = a_live_run()
    WorkerFactory(expires_at=NOW + timedelta(hours=1))
    page = tab(viewport=PHONE, color_scheme=scheme)
    page.goto(
        {
            "dashboard": reverse("admin:continuum_dashboard_changelist"),
            "runs": reverse("admin:continuum_run_changelist"),
            "run": page_of(run),
            "ask": reverse("admin:continuum_run_do", args=[run.pk, "signal"]),
        }[name]
    )
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
