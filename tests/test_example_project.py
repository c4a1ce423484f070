"""The example project as a newcomer meets it: in processes of its own, against workers and a database of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

import pytest

from tests.test_probes import free_port

EXAMPLE = Path(__file__).resolve().parent.parent / "example_project"
PATIENCE = 180.0
"""Seconds a demo may take on a busy machine; it needs about twenty."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a fresh clone: no ``DATABASE_URL``, so that the example starts a PostgreSQL of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "COLUMNS")}
    return clean | {
        "EXAMPLE_DATA_DIR": str(tmp_path_factory.mktemp("example")),
        "SHOP_LATENCY": "0.05",
        "SHOP_PACKING_SECONDS": "0.5",
    }


@pytest.fixture
def manage(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a management command of the example to its end: ``manage("check")``."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLE / "manage.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)

    return run


class Demo:
    """A demo under way, read line by line."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen(
            # The usual port may be looked for by another demo at the same time.
            [sys.executable, "-u", str(EXAMPLE / "manage.py"), "demo", "--port", str(free_port()), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        """Read lines until one holds the text; fail if the demo ends before."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"the demo ended without saying {text!r}:\n{self.output}")

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit status."""
        self.process.send_signal(signal.SIGINT)
        self.output += self.process.communicate(timeout=PATIENCE)[0]
        return self.process.returncode

    @property
    def children(self) -> list[int]:
        """The process ids of the workers it named."""
        (first,) = re.findall(r"\(pid ([\d, ]+)\), logs in", self.output)
        return [int(pid) for pid in first.split(",") + re.findall(r"place \(pid (\d+)", self.output)]


@pytest.fixture
def demo(environment: dict[str, str]) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(environment, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.terminate()
        each.process.wait(timeout=PATIENCE)
        each.process.stdout.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_example_passes_djangos_checks(manage):
    done = manage("check", "--database", "default", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_migrations_of_the_shop_are_complete(manage):
    done = manage("makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shops_own_tests_pass(environment):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=EXAMPLE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_order_ends_once_although_a_worker_is_killed(demo):
    run = demo("--orders", "60", "--exit")
    output, _ = run.process.communicate(timeout=PATIENCE)
    run.output = output
    assert run.process.returncode == 0, output
    assert "kill -9" in output
    assert "WRONG" not in output
    assert output.count("   ok ") == 11
    assert not any(alive(pid) for pid in run.children)


def test_ctrl_c_in_the_middle_leaves_no_process_behind(demo):
    run = demo("--orders", "60")
    run.read_until("logs in")
    assert run.interrupt() == 130, run.output
    assert not any(alive(pid) for pid in run.children)


def test_the_admin_shows_the_runs_until_ctrl_c(demo):
    run = demo("--orders", "20", "--workers", "1")
    run.read_until("Admin ")
    admin = re.search(r"http://\S+/admin/", run.output)[0]
    browser = build_opener(HTTPCookieProcessor(CookieJar()))
    log_in(browser, admin)
    run.read_until("Ctrl-C")

    assert "order_flow" in text_of(browser, admin + "continuum/run/")
    assert "Bakery" in text_of(browser, admin + "shop/order/")
    assert run.interrupt() == 0, run.output
    assert not any(alive(pid) for pid in run.children)


def test_too_many_orders_are_refused_before_anything_starts(manage):
    done = manage("demo", "--orders", "301")
    assert done.returncode == 1
    assert "--orders is 301; the order file holds 300" in done.stderr


def log_in(browser: OpenerDirector, admin: str) -> None:
    page = text_of(browser, admin + "login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]
    form = {"csrfmiddlewaretoken": token, "username": "admin", "password": "admin", "next": "/admin/"}
    with browser.open(admin + "login/", urlencode(form).encode(), timeout=PATIENCE) as response:
        assert "Log out" in response.read().decode()


def text_of(browser: OpenerDirector, url: str) -> str:
    with browser.open(url, timeout=PATIENCE) as response:
        return response.read().decode()
