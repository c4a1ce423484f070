"""``manage.py continuum_worker``: what it accepts, what it says, how it stops."""

import io
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections

import continuum
from continuum.core.definitions import registry
from continuum.management.commands import continuum_worker as module
from continuum.worker import log, processors
from continuum.worker.options import NodeOptions
from tests.app import family_workflows as flows
from tests.waiting_for import eventually

ROOT = Path(__file__).parent.parent


@pytest.fixture
def served(monkeypatch):
    """Have the command start nothing; returns the list of what it would have served."""
    from continuum.worker import node

    options = []

    def run_node(given):
        options.append(given)
        return 0

    monkeypatch.setattr(node, "run_node", run_node)
    monkeypatch.setattr(log, "set_up", lambda *args: None)
    # The connection it closes is the test's own here.
    monkeypatch.setattr(type(connections), "close_all", lambda self: None)
    return options


def command(*arguments, **options):
    """Run the command in this process; returns what it said."""
    out = io.StringIO()
    call_command("continuum_worker", *arguments, stdout=out, skip_checks=True, **options)
    return out.getvalue()


# What it accepts


@pytest.mark.django_db
def test_without_options_the_settings_hold(served, settings):
    settings.CONTINUUM = {"CONCURRENCY": 7, "ACTIVITY_THREADS": 3, "DRAIN_TIMEOUT": 4}
    command()
    [options] = served
    assert options == NodeOptions(
        database="default", queues=None, concurrency=7, threads=3, burst=False, drain_timeout=4.0, name=options.name
    )
    assert str(os.getpid()) in options.name


@pytest.mark.django_db
def test_options_go_before_settings(served):
    command("--queues=mail, default,mail", "--concurrency=5", "--threads=2", "--burst", "--drain-timeout=0")
    [options] = served
    assert (options.queues, options.concurrency, options.threads) == (("mail", "default"), 5, 2)
    assert (options.burst, options.drain_timeout) == (True, 0.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--queues=a,,b"], "'a,,b' is not a list of queue names"),
        (["--queues="], "'' is not a list of queue names"),
        (["--concurrency=0"], "'0' is not a whole number, 1 or more"),
        (["--threads=x"], "'x' is not a whole number"),
        (["--processes=-1"], "'-1' is not a whole number"),
        (["--drain-timeout=-1"], "'-1' is not a number of seconds"),
        (["--drain-timeout=nan"], "'nan' is not a number of seconds"),
        (["--database=elsewhere"], "There is no database 'elsewhere': DATABASES has 'default'."),
        (["--processes=2", "--reload"], "--reload works with one process"),
    ],
)
@pytest.mark.django_db
def test_a_wrong_option_is_refused_with_a_sentence(served, arguments, sentence):
    with pytest.raises(CommandError, match=sentence.replace("(", r"\(")):
        command(*arguments)
    assert served == []


@pytest.mark.parametrize("argument", ["--threads=0", "--database=elsewhere"])
def test_wrong_usage_is_status_2(start_worker, argument):
    assert start_worker(argument).wait(60) == 2


@pytest.mark.django_db
def test_a_database_that_is_not_postgresql_is_refused(served, monkeypatch):
    monkeypatch.setattr(type(connections["default"]), "vendor", "sqlite")
    with pytest.raises(CommandError, match="'default' is not PostgreSQL") as refused:
        command()
    assert refused.value.returncode == 2


@pytest.mark.django_db
def test_migrations_that_are_not_applied_are_named(served):
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM django_migrations WHERE app = 'continuum' "
            "AND name = (SELECT max(name) FROM django_migrations WHERE app = 'continuum')"
        )
    with pytest.raises(CommandError, match=r"lacks migration \d{4}_\w+ of continuum: run `manage.py migrate"):
        command()
    assert served == []


@pytest.mark.django_db
def test_an_error_found_by_the_system_checks_stops_the_start(served, settings):
    settings.CONTINUUM = {"CONCURENCY": 7}
    with pytest.raises(CommandError, match="Did you mean 'CONCURRENCY'"):
        call_command("continuum_worker", skip_checks=False)
    assert served == []


# How many processes it has


@pytest.fixture
def several(served, monkeypatch):
    """Ask how many processes there would be on four processors; none is started."""
    counts = []

    class Recorded:
        def __init__(self, command_line, processes, **arguments):
            counts.append(processes)

        def run(self):
            return 0

    monkeypatch.setattr(module, "Supervisor", Recorded)
    monkeypatch.setattr(processors, "usable", lambda: 4)
    monkeypatch.setattr(sys, "argv", [__file__, "continuum_worker"])  # a script, whatever has started the tests
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(module.Command, "_serve_and_reload", lambda self, options: served.append(options))

    def count(*arguments, from_code=False):
        counts.clear()
        served.clear()
        instance = module.Command()
        instance._called_from_command_line = not from_code
        call_command(instance, *arguments, skip_checks=True, verbosity=0)
        assert len(counts) + len(served) == 1
        return counts[0] if counts else 1

    return count


@pytest.mark.django_db
class TestHowManyProcesses:
    def test_one_for_each_processor_unless_told_otherwise(self, several):
        assert several() == 4

    def test_the_setting_goes_before_the_processors_and_the_option_before_the_setting(self, several, settings):
        settings.CONTINUUM = {"PROCESSES": 3}
        assert several() == 3
        assert several("--processes=2") == 2
        assert several("--processes=1") == 1
        settings.CONTINUUM = {"PROCESSES": 1}
        assert several() == 1
        assert several("--processes=6") == 6

    @pytest.mark.parametrize("option", ["--burst", "--reload"])
    def test_one_where_it_does_not_serve_for_long(self, several, settings, option):
        assert several(option) == 1
        settings.CONTINUUM = {"PROCESSES": 3}
        assert several(option) == 1
        assert several(option, "--processes=1") == 1

    def test_several_in_a_burst_that_is_told_so(self, several):
        assert several("--burst", "--processes=3") == 3

    def test_one_when_others_cannot_be_started_the_same_way(self, several, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["-c", "continuum_worker"])
        assert several() == 1
        with pytest.raises(CommandError, match="use --processes=1"):
            several("--processes=2")

    def test_one_when_it_is_called_from_code_that_does_not_say_more(self, several, settings):
        assert several(from_code=True) == 1
        assert several("--processes=2", from_code=True) == 2
        settings.CONTINUUM = {"PROCESSES": 3}
        assert several(from_code=True) == 3


# What it says


@pytest.mark.django_db
def test_the_banner_says_what_is_served(served):
    said = " ".join(command("--queues=mail,default", "--concurrency=5", "--threads=2").split())
    assert f"Continuum {continuum.__version__}" in said
    assert f"database {connections['default'].settings_dict['NAME']}" in said
    assert "queues mail, default" in said
    assert "5 runs and 2 threads in each of 1 process" in said
    assert "by notification on 'default', else every 1 s" in said
    assert registry.activities()[0].name in said
    assert registry.workflows()[0].name in said


@pytest.mark.django_db
def test_the_banner_of_a_worker_without_the_default_queue_says_that_it_runs_no_workflows(served):
    said = " ".join(command("--queues=mail").split())
    assert "workflows none: they run where the default queue is served" in said


@pytest.mark.django_db
def test_the_banner_keeps_the_password_to_itself(served, monkeypatch):
    settings = connections["default"].settings_dict
    monkeypatch.setitem(settings, "PASSWORD", "hunter2")
    assert "hunter2" not in command()


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"NAME": "shop", "HOST": "db.internal", "PORT": "5433", "OPTIONS": {}}, "shop on db.internal:5433"),
        ({"NAME": "shop", "HOST": "db.internal", "PORT": "", "OPTIONS": {}}, "shop on db.internal"),
        ({"NAME": "shop", "HOST": "", "PORT": "", "OPTIONS": {}}, "shop (local socket)"),
        ({"NAME": "shop", "HOST": "", "PORT": "", "OPTIONS": {"host": "/run/pg"}}, "shop (local socket)"),
        ({"NAME": "", "HOST": "", "PORT": "", "OPTIONS": {"service": "shop"}}, "default (service shop)"),
    ],
)
def test_the_address_of_a_database_is_name_and_host(monkeypatch, settings, address):
    for name, value in settings.items():
        monkeypatch.setitem(connections["default"].settings_dict, name, value)
    assert module._address("default") == address


@pytest.mark.django_db
def test_without_verbosity_there_is_no_banner(served):
    assert command(verbosity=0) == ""


@pytest.mark.django_db
def test_the_status_of_the_worker_is_the_status_of_the_command(served, monkeypatch):
    from continuum.worker import node

    monkeypatch.setattr(node, "run_node", lambda options: 1)
    with pytest.raises(SystemExit) as left:
        command()
    assert left.value.code == 1


# Its log lines


@pytest.fixture
def set_up_logging(monkeypatch):
    """``log.set_up`` as in a project that has configured no logging, but for the handlers given."""
    package, worker = (logging.getLogger(name) for name in ("continuum", "continuum.worker"))

    def set_up(*arguments, handlers=()):
        # Now, in the test itself: the test runner adds handlers of its own just before.
        monkeypatch.setattr(package, "propagate", False)
        monkeypatch.setattr(package, "handlers", [])
        monkeypatch.setattr(worker, "handlers", list(handlers))
        return log.set_up("shop-1", *arguments)

    level = package.level
    yield set_up
    package.setLevel(level)


def test_log_lines_name_the_time_the_level_and_the_worker(set_up_logging):
    stream = io.StringIO()
    set_up_logging(1, stream)
    logger = logging.getLogger("continuum.worker")
    logger.debug("too fine")
    logger.warning("look %s", "here")
    [line] = stream.getvalue().splitlines()
    moment, level, worker_name, text = line.split(maxsplit=3)
    assert (level, worker_name, text) == ("WARNING", "shop-1", "look here")
    assert len(moment) == len("12:00:01.234")


@pytest.mark.parametrize(
    ("verbosity", "seen"), [(0, ["warning"]), (1, ["info", "warning"]), (2, ["debug", "info", "warning"])]
)
def test_verbosity_sets_how_much_is_logged(set_up_logging, verbosity, seen):
    stream = io.StringIO()
    set_up_logging(verbosity, stream)
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger("continuum.worker"), level)(level)
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == seen


def test_a_project_that_handles_the_log_lines_keeps_them(set_up_logging):
    assert set_up_logging(1, io.StringIO(), handlers=[logging.NullHandler()]) is None
    assert logging.getLogger("continuum").handlers == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"), [(Terminal, "", True), (Terminal, "1", False), (io.StringIO, "", False)]
)
def test_colour_is_for_terminals_of_people_who_want_it(set_up_logging, monkeypatch, stream, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)
    out = stream()
    set_up_logging(1, out)
    logging.getLogger("continuum.worker").error("no")
    assert ("\x1b[" in out.getvalue()) is coloured


# The processes


def worker(environment, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "django", "continuum_worker", *arguments],
        env=environment | {"NO_COLOR": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.fixture
def start_worker(subprocess_environment, transactional_db):
    """Start the command as a process: ``start_worker("--burst")``."""
    started = []

    def start(*arguments):
        started.append(worker(subprocess_environment, *arguments))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def workers(state="alive", count=1):
    """Whether that many nodes are in that state."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM continuum_workers WHERE state = %s", [state])
        return cursor.fetchone()[0] == count


def test_a_worker_serves_until_it_is_told_to_stop_and_leaves_properly(start_worker):
    process = start_worker("--processes=1")
    eventually(workers, 60)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "SIGTERM: draining" in said
    assert workers("dead")


def test_a_burst_ends_when_nothing_is_left_to_do(start_worker):
    process = start_worker("--burst")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert workers("dead")


def test_several_processes_are_several_workers_under_one_banner(start_worker):
    process = start_worker("--processes=2", "--threads=2")
    eventually(lambda: workers(count=2), 60)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.count(f"Continuum {continuum.__version__}") == 1
    assert workers("dead", 2)


def test_a_bare_worker_has_a_process_for_each_processor_up_to_four(start_worker):
    count = processors.by_default()
    process = start_worker()
    eventually(lambda: workers(count=count), 60)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert workers("dead", count)
    assert f"in each of {count} process" in " ".join(said.split())


def test_a_bare_worker_answers_probes_for_all_its_processes_on_one_port(start_worker):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    start_worker("--probe", f"127.0.0.1:{port}")
    count = processors.by_default()
    eventually(lambda: workers(count=count), 60)

    def ready():
        try:
            with urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
                return json.load(response)
        except HTTPError as not_yet:
            not_yet.close()
        except OSError:
            pass

    said = eventually(ready, 60)
    assert len(said.get("processes", [said])) == count


def test_a_burst_of_several_processes_ends_when_all_are_done(start_worker):
    runs = [continuum.start(flows.fans_out, size) for size in range(1, 9)]
    process = start_worker("--processes=2", "--burst")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert workers("dead", 2)
    assert {continuum.get_run(run).state for run in runs} == {"completed"}


@pytest.mark.parametrize(
    ("trouble", "arguments", "sentence"),
    [
        ({"DATABASE_URL": "postgres://nobody@127.0.0.1:9/none"}, [], "Cannot connect to database 'default'"),
        ({"DATABASE_URL": "postgres://nobody@127.0.0.1:9/none"}, ["--skip-checks"], "Cannot reach the database none"),
        ({"BROKEN": '{"CONCURENCY": 7}'}, [], "Did you mean 'CONCURRENCY'"),
        ({"BROKEN": '{"WORKFLOW_MODULES": ["broken_flows"]}'}, [], "ZeroDivisionError"),
        ({"BROKEN": '{"WORKFLOW_MODULES": ["broken_flows"]}'}, ["--skip-checks"], "ZeroDivisionError"),
        ({"BROKEN": '{"PROCESSES": 0}'}, [], 'CONTINUUM["PROCESSES"] must be a whole number, 1 or more; it is 0.'),
    ],
)
def test_what_keeps_several_processes_from_starting_is_said_once(
    subprocess_environment, transactional_db, tmp_path, trouble, arguments, sentence
):
    (tmp_path / "broken_flows.py").write_text("1 / 0\n")
    (tmp_path / "broken_settings.py").write_text(
        "import json, os\nfrom tests.settings import *\nCONTINUUM = json.loads(os.environ.get('BROKEN', '{}'))\n"
    )
    environment = {"DJANGO_SETTINGS_MODULE": "broken_settings", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    process = worker(subprocess_environment | environment | trouble, "--processes=2", *arguments)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert said.count(sentence) == 1, said
    assert "worker process" not in said


def test_with_reload_a_change_of_code_gives_the_runs_back_and_starts_anew(
    subprocess_environment, transactional_db, tmp_path
):
    flows = tmp_path / "reloaded_flows.py"
    flows.write_text("")
    (tmp_path / "reloading.py").write_text(
        'from tests.settings import *\nCONTINUUM = {"WORKFLOW_MODULES": ["reloaded_flows"]}\n'
    )
    environment = {"DJANGO_SETTINGS_MODULE": "reloading", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    process = worker(subprocess_environment | environment, "--reload", start_new_session=True)
    try:
        eventually(workers, 60)
        moments = itertools.count(flows.stat().st_mtime + 10)

        def touched():
            # Again and again: a change from before the reloader has looked for the first time is none to it.
            os.utime(flows, (next(moments),) * 2)
            return workers("dead")

        eventually(touched, 60)
        eventually(workers, 60)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert said.count("stopped;") == 2


def test_processes_started_from_code_get_the_same_options(monkeypatch, served):
    lines = []

    class Recorded:
        def __init__(self, command_line, processes, **arguments):
            lines.append((command_line, processes, arguments))

        def run(self):
            return 0

    monkeypatch.setattr(module, "Supervisor", Recorded)
    monkeypatch.setattr(module.Command, "_require_migrations", lambda self, alias: None)
    command("--processes=3", "--queues=a,b", "--threads=2", "--burst", "--drain-timeout=1.5")
    [(line, processes, arguments)] = lines
    assert line[:4] == [sys.executable, "-m", "django", "continuum_worker"]
    assert {"--queues=a,b", "--threads=2", "--burst", "--drain-timeout=1.5"} <= set(line)
    assert (processes, arguments) == (3, {"burst": True, "drain_timeout": 1.5, "probes": None})
