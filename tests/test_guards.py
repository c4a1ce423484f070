"""Workflow code that does I/O is stopped where it does so; everything else goes on as ever."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import gc
import io
import logging
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import warnings
import weakref
import zoneinfo
from contextlib import suppress
from types import SimpleNamespace
from uuid import UUID

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.core.cache import caches
from django.core.mail import send_mail
from django.db import connection, transaction
from django.test import override_settings
from django.utils import translation

import continuum
from continuum.core import effects, facts
from continuum.core.definitions import activity, workflow
from continuum.core.history import Event, EventType
from continuum.core.watching import Watch
from continuum.determinism import guards
from continuum.exceptions import NonDeterminismError, WorkflowDeadlockError
from tests.core.driver import EPOCH_US, Recorder, close_all, drive
from tests.mending import mend
from tests.workers import run_until_idle, worker

HERE = __file__
WHERE = SimpleNamespace(folder="", file="", executor=None, socket=None, cursor=None)


pytestmark = pytest.mark.filterwarnings("ignore:Django 2028")  # about mail


@pytest.fixture(autouse=True)
def _guards(tmp_path):
    (tmp_path / "file").write_text("text")
    WHERE.folder, WHERE.file = str(tmp_path), str(tmp_path / "file")
    guards.install()
    yield
    guards.uninstall()
    close_all()


@pytest.fixture
def _pool():
    """A thread that is there already, and a connection that is open already."""
    with concurrent.futures.ThreadPoolExecutor(1) as WHERE.executor:
        WHERE.executor.submit(int).result()
        WHERE.socket, peer = socket.socketpair()
        with WHERE.socket, peer:
            yield


def nothing():
    pass


def process():
    multiprocessing.get_context("spawn").Process(target=nothing).start()


SYNCHRONOUS = {
    "Model.objects.get": lambda: Group.objects.get(pk=1),
    "Model.save": lambda: Group(name="g").save(),
    "Model.objects.iterator": lambda: list(Group.objects.iterator()),
    "connection.cursor": lambda: connection.cursor(),
    "psycopg": lambda: psycopg.connect("dbname=none"),
    "open": lambda: open(WHERE.file).close(),
    "open to write": lambda: open(WHERE.file, "w").close(),
    "io.open": lambda: io.open(WHERE.file).close(),  # noqa: UP020
    "os.open": lambda: os.open(WHERE.file, os.O_RDONLY),
    "Path.read_text": lambda: pathlib.Path(WHERE.file).read_text(),
    "Path.exists": lambda: pathlib.Path(WHERE.file).exists(),
    "Path.iterdir": lambda: list(pathlib.Path(WHERE.folder).iterdir()),
    "os.path.exists": lambda: os.path.exists(WHERE.file),
    "os.remove": lambda: os.remove(WHERE.file),
    "tempfile": lambda: tempfile.mkstemp(dir=WHERE.folder),
    "shutil": lambda: shutil.rmtree(WHERE.folder),
    "subprocess": lambda: subprocess.run(["true"]),
    "os.system": lambda: os.system("true"),
    "os.fork": lambda: os.fork(),
    "multiprocessing": process,
    "threading": lambda: threading.Thread(target=nothing).start(),
    "an executor": lambda: WHERE.executor.submit(nothing),
    "time.sleep": lambda: time.sleep(0),
    "signal.signal": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "os.kill": lambda: os.kill(os.getpid(), 0),
    "urllib": lambda: urllib.request.urlopen("http://localhost:9/"),
    "socket": lambda: socket.create_connection(("127.0.0.1", 9)),
    "a socket from before": lambda: WHERE.socket.sendall(b"x"),
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "a cache in memory": lambda: caches["default"].get("key"),
    "mail": lambda: send_mail("subject", "body", "a@example.com", ["b@example.com"]),
}
WITH_DATABASE = {
    "a cursor from before": lambda: WHERE.cursor.execute("SELECT 1"),
    "a psycopg connection from before": lambda: WHERE.cursor.connection.execute("SELECT 1"),
    "transaction.atomic": lambda: transaction.atomic().__enter__(),
    "Model.objects.create": lambda: Group.objects.create(name="g"),
}
NOBODY = UUID(int=1)
OF_CONTINUUM = {
    "start": lambda: continuum.start(does, ""),
    "get_or_start": lambda: continuum.get_or_start(does, "", idempotency_key="k"),
    "start_many": lambda: continuum.start_many(does, [""]),
    "get_run": lambda: continuum.get_run(NOBODY),
    "signal": lambda: continuum.signal(NOBODY, "go"),
    "cancel": lambda: continuum.cancel(NOBODY),
    "result": lambda: continuum.result(NOBODY),
    "retry": lambda: continuum.retry(NOBODY),
    "fork": lambda: continuum.fork(NOBODY, before="0:1"),
    "set_attributes": lambda: continuum.set_attributes(NOBODY, {}),
    "query": lambda: continuum.query(),
    "count": lambda: continuum.count(),
}
ASYNCHRONOUS = {
    "Model.objects.aget": lambda: Group.objects.aget(pk=1),
    "sync_to_async": lambda: sync_to_async(nothing)(),
    "asyncio.to_thread": lambda: asyncio.to_thread(nothing),
    "a subprocess of asyncio": lambda: asyncio.create_subprocess_exec("true"),
    "a connection of asyncio": lambda: asyncio.open_connection("127.0.0.1", 9),
}


@activity
def noop(value: int = 0) -> int:
    return value


@workflow
async def does(what: str) -> str:
    return str((SYNCHRONOUS | WITH_DATABASE)[what]())


@workflow
async def does_asynchronously(what: str) -> str:
    return str(await ASYNCHRONOUS[what]())


@workflow
async def does_quietly(what: str, then: int = 0) -> str:
    with suppress(Exception):
        SYNCHRONOUS[what]()
    return str(await noop(1) if then else "as if nothing had happened")


FAULT = SimpleNamespace(on=False)


@workflow
async def does_in_the_middle() -> str:
    await noop(1)
    if FAULT.on:
        SYNCHRONOUS["open"]()
    await noop(2)
    return await effects.wait_signal("go")


async def does_nothing_in_the_middle() -> str:
    await noop(1)
    await noop(2)
    return await effects.wait_signal("go")


@activity
def writes(name: str) -> str:
    pathlib.Path(WHERE.folder, name).write_text(Group.objects.create(name=name).name)
    return name


@workflow
async def writes_by_activity(name: str) -> str:
    return await writes(name)


@workflow
async def does_in_a_task(what: str) -> str:
    async def task():
        SYNCHRONOUS[what]()

    await asyncio.gather(asyncio.create_task(task()), return_exceptions=True)
    return "as if nothing had happened"


@workflow
async def does_aside(what: str) -> str:
    return facts.side_effect(lambda: type(SYNCHRONOUS[what]()).__name__)


class TestRefusal:
    @pytest.mark.parametrize("what", SYNCHRONOUS)
    @pytest.mark.usefixtures("_pool")
    def test_what_does_io_ends_the_run(self, what):
        run = drive(does, what)
        assert run.error["type"] == "NonDeterminismError"
        assert run.types == ["run_failed"]

    @pytest.mark.django_db
    @pytest.mark.parametrize("what", WITH_DATABASE)
    def test_so_does_what_uses_a_database_that_is_connected_already(self, what):
        with connection.cursor() as WHERE.cursor:
            run = drive(does, what)
        assert run.error["type"] == "NonDeterminismError"
        assert "in an activity" in run.error["message"]
        assert not Group.objects.exists()

    @pytest.mark.parametrize("what", ASYNCHRONOUS)
    def test_so_does_what_awaits_io(self, what):
        assert drive(does_asynchronously, what).error["type"] == "NonDeterminismError"

    def test_nothing_was_done(self):
        drive(does, "os.remove")
        drive(does, "open to write")
        assert pathlib.Path(WHERE.file).read_text() == "text"

    def test_it_says_which_line_did_what_and_what_to_do_instead(self):
        message = drive(does, "Path.read_text").error["message"]
        line = does.fn.__code__.co_firstlineno + 2
        assert f"{HERE}:{SYNCHRONOUS['Path.read_text'].__code__.co_firstlineno} in <lambda>" in message
        assert f"called from {HERE}:{line} in does, opens a file" in message
        assert repr(pathlib.Path(WHERE.file)) in message
        assert "Do it in an activity" in message

    @pytest.mark.parametrize(
        ("what", "advice"),
        [
            ("Model.objects.get", "Read and write rows in an activity"),
            ("time.sleep", "await continuum.sleep"),
            ("threading", "asyncio.gather()"),
            ("urllib", "in an activity"),
        ],
    )
    def test_the_advice_fits(self, what, advice):
        assert advice in drive(does, what).error["message"]

    @pytest.mark.django_db
    @pytest.mark.parametrize("name", OF_CONTINUUM)
    def test_of_what_application_code_calls_it_says_that_it_was_called(self, name, monkeypatch):
        monkeypatch.setitem(SYNCHRONOUS, name, OF_CONTINUUM[name])
        message = drive(does, name).error["message"]
        assert f"{HERE}:{OF_CONTINUUM[name].__code__.co_firstlineno} in <lambda>" in message
        assert f"in does, calls continuum.{name}(): " in message
        assert "Call another workflow, or start_child(), instead of start()" in message

    def test_the_traceback_leads_to_the_line(self):
        text = drive(does, "open").error["traceback"]
        assert "in does" in text
        assert "determinism" not in text

    def test_code_that_swallows_the_error_fails_all_the_same(self):
        assert drive(does_quietly, "open").error["type"] == "NonDeterminismError"
        run = drive(does_quietly, "open", 1)
        assert (run.types, run.asked) == (["run_failed"], run.asked)
        assert run.outcome.error["type"] == "NonDeterminismError"
        assert run.outstanding == {}

    def test_so_does_a_run_whose_task_did_it(self):
        assert drive(does_in_a_task, "open").error["type"] == "NonDeterminismError"

    def test_in_a_replay_nothing_is_recorded_and_the_error_says_what_happened(self):
        history = [Event(1, EventType.ACTIVITY_COMPLETED, "0:1", noop.name, '{"args":[1],"result":1}', EPOCH_US)]
        run = Recorder(does_quietly, drive(does_quietly, "open", 1).run, '["open",1]')
        with pytest.raises(NonDeterminismError, match="opens a file"):
            run.begin(EPOCH_US, history)
        assert run.take().journal == []

    def test_code_that_is_given_up_does_no_io_either(self):
        @workflow(name="cleans_up_by_hand")
        async def cleans_up() -> None:
            try:
                await effects.wait_signal("never")
            finally:
                os.remove(WHERE.file)

        run = drive(cleans_up)
        run.close()
        assert os.path.exists(WHERE.file)
        assert run.execution.take().journal == []


class TestWhatIsFine:
    @pytest.mark.parametrize("what", ["open", "os.remove", "subprocess", "threading", "a cache in memory", "mail"])
    def test_outside_a_workflow(self, what):
        SYNCHRONOUS[what]()

    @pytest.mark.parametrize("what", ["open", "os.remove", "subprocess", "threading", "an executor", "time.sleep"])
    @pytest.mark.usefixtures("_pool")
    def test_in_a_side_effect_which_runs_once(self, what):
        assert drive(does_aside, what).types == ["side_effect", "run_completed"]

    def test_but_a_side_effect_has_no_database_as_it_runs_on_the_loop(self):
        assert "Read and write rows in an activity" in drive(does_aside, "Model.objects.get").error["message"]

    def test_in_an_activity(self):
        @activity(name="io_in_activity")
        def io_in_activity(what: str) -> str:
            return str(SYNCHRONOUS[what]())

        @workflow(name="io_by_activity")
        async def by_activity(what: str) -> str:
            return await io_in_activity(what)

        assert drive(by_activity, "Path.read_text").result == "text"

    def test_after_a_run_that_did_it(self):
        drive(does, "open")
        with open(WHERE.file) as file:
            assert file.read() == "text"

    def test_imports_of_modules_nobody_has_imported_yet(self, tmp_path, monkeypatch):
        (tmp_path / "imported_late.py").write_text("with open(__file__) as file:\n    text = file.read()\n")
        monkeypatch.syspath_prepend(tmp_path)

        @workflow(name="imports")
        async def imports() -> str:
            import imported_late

            return imported_late.text

        assert "text" in drive(imports).result

    def test_source_lines_of_tracebacks(self):
        @workflow(name="formats")
        async def formats() -> str:
            try:
                raise ValueError
            except ValueError:
                import linecache

                linecache.clearcache()
                return traceback.format_exc()

        assert "raise ValueError" in drive(formats).result

    def test_log_handlers(self, tmp_path):
        handler = logging.FileHandler(tmp_path / "log", delay=True)
        facts.logger.logger.addHandler(handler)

        @workflow(name="logs")
        async def logs() -> None:
            facts.logger.warning("here")

        try:
            assert drive(logs).types == ["run_completed"]
        finally:
            facts.logger.logger.removeHandler(handler)
            handler.close()
        assert "here" in (tmp_path / "log").read_text()

    def test_warnings_and_time_zones_and_translations(self):
        @workflow(name="odds_and_ends")
        async def odds_and_ends() -> str:
            zone = zoneinfo.ZoneInfo.no_cache("Europe/Berlin")  # which reads a file
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("look", stacklevel=1)
            with translation.override("de"):
                return f"{zone} {translation.gettext('Yes')}"

        with pytest.warns(UserWarning, match="look"):
            assert drive(odds_and_ends).result == "Europe/Berlin Ja"

    def test_what_the_garbage_collector_tidies_up(self, tmp_path):
        class Holder:
            pass

        @workflow(name="collects_garbage")
        async def collects() -> None:
            gc.collect()

        holder = Holder()
        holder.itself = holder
        weakref.finalize(holder, os.remove, WHERE.file)
        del holder
        assert drive(collects).types == ["run_completed"]
        assert not os.path.exists(WHERE.file)

    def test_modules_the_project_trusts(self):
        with override_settings(CONTINUUM={"TRUSTED_MODULES": ["tests"]}):
            assert drive(does, "open").types == ["run_completed"]
        with override_settings(CONTINUUM={"TRUSTED_MODULES": ["tests.test_guard"]}):
            assert drive(does, "open").types == ["run_failed"]


class TestTheProcess:
    def test_functions_are_as_they_were_once_the_guards_are_down(self):
        guards.uninstall()
        try:
            before = builtins.open, os.open, socket.socket.__dict__.get("send"), psycopg.Connection.__dict__["connect"]
            abilities = set(os.supports_dir_fd)
            guards.install()
            guards.install()
            guards.uninstall()
            assert builtins.open is not before[0]
            guards.uninstall()
            after = builtins.open, os.open, socket.socket.__dict__.get("send"), psycopg.Connection.__dict__["connect"]
            assert after == before
            assert os.supports_dir_fd == abilities
        finally:
            guards.install()

    def test_functions_keep_their_names_and_their_abilities(self):
        assert open.__name__ == "open"
        assert io.open is open
        assert os.open in os.supports_dir_fd
        assert os.stat in os.supports_follow_symlinks

    def test_functions_taken_for_attributes_of_a_class_do_not_become_methods(self):
        class Reader:
            opener = open

        with Reader().opener(WHERE.file) as file:
            assert file.read() == "text"

    def test_a_project_can_do_without(self):
        guards.uninstall()
        try:
            with override_settings(CONTINUUM={"RUNTIME_GUARDS": False}), guards.guarding():
                assert drive(does, "open").types == ["run_completed"]
            with guards.guarding():
                assert drive(does, "open").types == ["run_failed"]
        finally:
            guards.install()

    def test_other_threads_are_not_affected_while_a_workflow_runs(self):
        asked, done, seen = threading.Event(), threading.Event(), []

        def other():
            asked.wait(10)
            with suppress(NonDeterminismError), open(WHERE.file) as file:
                seen.append(file.read())
            done.set()

        @workflow(name="waits_for_another_thread")
        async def waits() -> None:
            asked.set()
            done.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        drive(waits)
        thread.join()
        assert seen == ["text"]

    def test_nobody_is_hit_after_a_drain_that_was_interrupted(self):
        class Interrupting(Watch):
            def settle(self):
                self.raised = False
                return True

            def verdict(self):
                open(WHERE.file).close()
                return WorkflowDeadlockError(1)

        @workflow(name="is_interrupted")
        async def is_interrupted() -> None:
            watch.raised = True  # as the watchdog's thread does
            await effects.wait_signal("never")

        run = Recorder(is_interrupted, drive(does, "open").run, "[]")
        run.loop.watch = watch = Interrupting()
        run.begin(EPOCH_US)
        assert run.outcome.error["type"] == "WorkflowDeadlockError"
        open(WHERE.file).close()

    def test_the_process_gets_no_audit_hook(self, monkeypatch):
        """It would be called for every id(), every frame that is looked at, every code object, and never go away."""
        monkeypatch.setattr(sys, "addaudithook", pytest.fail)
        guards.install()
        guards.uninstall()


@pytest.mark.django_db(transaction=True)
class TestAWorker:
    def test_fails_the_run_once_and_no_other(self):
        bad = [continuum.start(does, "open"), continuum.start(does_quietly, "Model.objects.get", 1)]
        good = continuum.start(writes_by_activity, "written")
        run_until_idle()
        for run in map(continuum.get_run, bad):
            assert (run.state, run.error["type"]) == ("failed", "NonDeterminismError")
            assert [event.type for event in run.history()] == ["run_failed"]
        assert continuum.result(good) == "written"
        assert Group.objects.get().name == pathlib.Path(WHERE.folder, "written").read_text()

    def test_parks_a_run_whose_code_does_io_where_it_once_did_not_until_it_is_mended(self, monkeypatch):
        run = continuum.start(does_in_the_middle)
        run_until_idle()
        monkeypatch.setattr(FAULT, "on", True)
        continuum.signal(run, "go", "gone")
        run_until_idle()
        parked = continuum.get_run(run)
        assert (parked.state, parked.error["type"]) == ("stuck_unknown_version", "NonDeterminismError")
        assert "opens a file" in parked.error["message"]
        assert [event.type for event in parked.history()] == ["activity_completed"] * 2
        mend(monkeypatch, does_in_the_middle, does_nothing_in_the_middle)
        run_until_idle()
        assert continuum.result(run, timeout=20) == "gone"

    def test_has_the_guards_up_for_as_long_as_it_serves(self):
        guards.uninstall()
        try:
            before = builtins.open
            with worker():
                assert builtins.open is not before
            assert builtins.open is before
        finally:
            guards.install()
