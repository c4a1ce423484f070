"""How findings are told: by place, by the calls that lead there, once, and with what to do instead."""

import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

import continuum
from continuum import checks
from continuum.core import definitions
from continuum.determinism.denylist import RULES, rule
from continuum.determinism.scanner import scan

TICKET = """
    import time

    def stamp():
        return time.time()

    class Clock:
        def read(self):
            return stamp()
"""


def loaded():
    """The workflows of the projects that a test has made."""
    return definitions.registry.workflows()


@pytest.fixture
def check(monkeypatch):
    """Run the system check on the workflows of the test's projects."""

    def run():
        monkeypatch.setattr(checks, "registry", definitions.registry)
        return checks.check_determinism()

    return run


def test_the_message_has_the_place_the_way_there_and_what_to_do_instead(project, check, monkeypatch):
    tickets = project.write(TICKET, "tickets")
    flows = project.module(
        """
        import continuum
        from {here} import tickets

        @continuum.workflow(name="sell")
        async def flow():
            clock = tickets.Clock()
            return clock.read()
        """
    )
    monkeypatch.chdir(project.folder)
    [message] = check()
    assert str(message) == (
        "tickets.py:5: (continuum.D101) `time.time()` reads the clock. The workflow sell gets there by "
        "Clock.read (flows.py:8) → stamp (tickets.py:9).\n"
        "\tHINT: Use continuum.now() or continuum.today()."
    )
    (project.folder / "elsewhere").mkdir()
    monkeypatch.chdir(project.folder / "elsewhere")
    assert check()[0].obj == f"{tickets}:5"
    assert flows.__file__ in check()[0].msg


def test_what_is_in_the_workflow_itself_needs_no_way_there(project, monkeypatch):
    project.module(
        """
        import os, continuum

        @continuum.workflow(name="sell")
        async def flow():
            return os.urandom(4)
        """
    )
    [finding] = scan(loaded())
    assert str(finding) == "`os.urandom()` gives something else each time. The workflow sell gets there."


def test_another_name_for_something_denied_is_said_to_be_one(project):
    project.module(
        """
        import continuum
        from time import time as moment
        from datetime import datetime
        later = datetime.now

        @continuum.workflow(name="sell")
        async def flow():
            return moment(), later()
        """
    )
    first, second = sorted(str(finding) for finding in scan(loaded()))
    assert first.startswith("`later()`, which is datetime.now, reads the clock.")
    assert second.startswith("`moment()`, which is time.time, reads the clock.")


def test_what_several_workflows_call_is_told_once_with_the_shortest_way(project):
    project.write(TICKET, "tickets")
    project.module(
        """
        from continuum import workflow
        from {here}.tickets import stamp

        def around():
            return stamp()

        @workflow(name="a")
        async def a():
            return around()

        @workflow(name="b")
        async def b():
            return stamp()

        @workflow(name="c")
        async def c():
            return around()
        """
    )
    [finding] = scan(loaded())
    assert (finding.workflow, len(finding.chain), finding.others) == ("b", 1, 2)
    assert str(finding).endswith("So do 2 other workflows.")


def test_what_is_certain_is_an_error_and_what_cannot_be_judged_a_warning(project, check):
    project.module(
        """
        import time
        from continuum import workflow

        @workflow
        async def flow():
            print(time.time())
        """
    )
    assert sorted((message.id, message.is_serious()) for message in check()) == [
        ("continuum.D101", True),
        ("continuum.D801", False),
    ]


def test_a_method_that_may_not_be_the_one_called_gives_a_warning(project, check):
    project.module(
        """
        import time
        from continuum import workflow

        class Mail:
            def send(self):
                return time.time()

        def make():
            return Mail()

        @workflow
        async def flow(anything):
            make()
            anything.send()
        """
    )
    [message] = check()
    assert (message.id, message.is_serious()) == ("continuum.D101", False)


def test_a_workflow_without_source_is_not_judged(check):
    namespace = {}
    exec("async def flow(): pass", namespace)
    flow = definitions.WorkflowDefinition(namespace["flow"], name="typed")
    [finding] = scan([flow])
    assert finding.id == "continuum.D903"
    assert not finding.certain


def test_what_goes_wrong_in_one_workflow_is_told_and_the_others_are_judged(project, monkeypatch):
    project.module(
        """
        import time
        from continuum import workflow

        @workflow(name="a")
        async def a():
            time.time()

        @workflow(name="b")
        async def b():
            time.time()
        """
    )
    from continuum.determinism import scanner

    plain = scanner.callees

    def fails_for_a(fn, **options):
        if fn.__name__ == "a":
            raise ValueError("no idea")
        return plain(fn, **options)

    monkeypatch.setattr(scanner, "callees", fails_for_a)
    assert sorted((finding.rule.id, finding.workflow) for finding in scan(loaded())) == [("D101", "b"), ("D903", "a")]


# What is never awaited


def test_what_is_never_awaited_is_an_error_that_says_what_to_do(project, check, monkeypatch):
    project.module(
        """
        import continuum

        @continuum.activity
        def charge_card(order): ...

        @continuum.workflow(name="sell")
        async def flow(order):
            charge_card(order)
        """
    )
    monkeypatch.chdir(project.folder)
    [message] = check()
    assert message.is_serious()
    assert str(message) == (
        "flows.py:9: (continuum.D704) `charge_card(order)` is not awaited, so it is never asked for and nothing "
        "happens. The workflow sell gets there.\n"
        "\tHINT: Await it, or have it go on beside, while the run lasts, with asyncio.create_task(…)."
    )


@pytest.mark.parametrize(
    ("statement", "certain"),
    [
        ("Desk.charge(1)", True),
        ("Desk.close(Desk())", True),
        ("Desk().charge(1)", False),  # a subclass may have another one
        ("Desk().close()", False),
        ("Desk().close_at_once()", False),
        ("asyncio.Queue().put(1)", True),
    ],
)
def test_what_a_subclass_may_do_otherwise_is_a_warning(project, statement, certain):
    project.module(
        f"""
        import asyncio, continuum

        class Desk:
            @continuum.activity
            def charge(number): ...

            async def close(self): ...

            @classmethod
            def close_at_once(cls):
                cls.charge(1)

        @continuum.workflow
        async def flow():
            {statement}
        """
    )
    assert [(finding.rule.id, finding.certain) for finding in scan(loaded())] == [("D704", certain)]


def test_what_a_workflow_may_not_call_at_all_is_not_told_to_await_it(project):
    project.module(
        """
        import asyncio, continuum

        @continuum.workflow
        async def flow():
            asyncio.to_thread(len, [])
            continuum.astart(flow)
        """
    )
    assert [finding.rule.id for finding in scan(loaded())] == ["D305", "D211"]


def test_a_cached_helper_that_leaves_something_undone_is_no_less_pure(project):
    project.module(
        """
        import continuum, functools

        @functools.cache
        def double(number):
            continuum.sleep(1)
            return 2 * number

        @continuum.workflow
        async def flow():
            return double(1)
        """
    )
    assert [finding.rule.id for finding in scan(loaded())] == ["D704"]


def test_every_public_function_that_makes_an_effect_is_known(project):
    public = {name: getattr(continuum, name) for name in continuum.__all__}
    awaited = [
        name
        for name, held in public.items()
        if inspect.isfunction(held)
        and held.__module__.startswith("continuum.core.")
        and (inspect.iscoroutinefunction(held) or inspect.signature(held).return_annotation == "Effect")
    ]
    assert {"sleep", "sleep_until", "wait_signal", "start_child", "compensate"} <= set(awaited)
    lines = [f"    continuum.{name}()" for name in awaited]
    project.module("\n".join(["import continuum", "@continuum.workflow", "async def flow():", *lines]))
    found = [finding.line for finding in scan(loaded()) if finding.rule.id == "D704"]
    assert found == list(range(4, 4 + len(awaited)))


# Suppressions


SUPPRESSED = """
    import time
    from continuum import workflow

    def elsewhere():
        return 1  # continuum: allow[D101] not looked at

    @workflow
    async def flow():
        x = 1{0}
        return time.time(){1}
"""


@pytest.mark.parametrize(
    ("before", "at", "expected"),
    [
        ("", "", ["D101"]),
        ("", "  # continuum: allow[D101] only for the log", []),
        ("", "  # continuum: allow[D101]: only for the log", []),
        ("", "  # continuum: allow[D101, D801] only for the log", []),
        ("", "  # continuum:allow [continuum.D101] - only for the log", []),
        ("", "  # continuum: allow[D101]", ["D101", "D901"]),
        ("", "  # continuum: allow[D101] - ", ["D101", "D901"]),
        ("", "  # continuum: allow only for the log", ["D101", "D901"]),
        ("", "  # continuum: allow[D102] only for the log", ["D101", "D902"]),
        ("  # continuum: allow[D101] only for the log", "", ["D101", "D902"]),
        ("; y = '# continuum: allow[D101] is text'", "", ["D101"]),
    ],
)
def test_a_comment_suppresses_what_it_names_in_its_line_if_it_says_why(project, before, at, expected):
    project.module(SUPPRESSED.replace("{0}", before).replace("{1}", at))
    assert sorted(finding.rule.id for finding in scan(loaded())) == expected


def test_an_unused_suppression_says_which(project):
    project.module(
        SUPPRESSED.replace("{0}", "  # continuum: allow[D101] no").replace("return time.time(){1}", "return")
    )
    [finding] = scan(loaded())
    assert str(finding).startswith("Allow[D101] suppresses nothing. ")


# Trusted modules


@pytest.mark.parametrize("trusted", ["tickets", "tickets.Clock", "", "flows"])
def test_functions_of_trusted_modules_are_taken_as_pure(project, check, trusted):
    project.write(TICKET, "tickets")
    project.module(
        """
        import continuum
        from {here} import tickets

        @continuum.workflow
        async def flow():
            return tickets.Clock().read()
        """
    )
    name = f"{project.name}.{trusted}".rstrip(".")
    with override_settings(CONTINUUM={"TRUSTED_MODULES": [name]}):
        found = [message.id for message in check()]
    assert found == (["continuum.D101"] if trusted == "tickets.Clock" else [])


def test_a_library_can_be_trusted_though_it_is_denied(project):
    project.module(
        """
        import subprocess, continuum

        @continuum.workflow
        async def flow():
            return subprocess.run([])
        """
    )
    assert scan(loaded(), trusted=("sub",))
    assert not scan(loaded(), trusted=("subprocess",))


@override_settings(CONTINUUM={"TRUSTED_MODULES": 5})
def test_a_wrong_setting_is_for_its_own_check(check):
    assert check() == []


# Where it is said


def test_manage_py_check_says_it(project, check, monkeypatch):
    project.module("import time, continuum\n\n@continuum.workflow\nasync def flow():\n    time.time()\n")
    check()
    with pytest.raises(SystemCheckError, match=r"flows.py:5: \(continuum.D101\) `time.time\(\)` reads the clock"):
        call_command("check", stdout=io.StringIO(), stderr=io.StringIO())


@pytest.mark.django_db
def test_a_worker_does_not_start_and_says_why(project, check):
    project.module("import time, continuum\n\n@continuum.workflow\nasync def flow():\n    time.time()\n")
    check()
    with pytest.raises(CommandError, match="reads the clock") as refused:
        call_command("continuum_worker", skip_checks=False, stdout=io.StringIO(), stderr=io.StringIO())
    assert refused.value.returncode == 1


# The denylist itself


def test_ids_are_unique_and_say_their_group():
    ids = [each.id for each in RULES]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert rule("D101").id == "D101"


@pytest.mark.parametrize("each", RULES, ids=lambda each: each.id)
def test_a_rule_says_what_to_do_instead(each):
    assert each.advice.endswith(".")
    assert each.title
    assert each.does


def test_the_documentation_has_every_rule_as_it_is():
    page = Path(__file__).parents[2] / "docs" / "determinism.md"
    rows = re.findall(
        r"^\| (D\d+) \| (.+) \| (error|warning) \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [(each.id, each.title, "error" if each.certain else "warning", each.advice) for each in RULES]


def test_the_example_project_has_no_findings():
    """In a process of its own, as its settings and its apps are others."""
    example = Path(__file__).parents[2] / "example_project"
    script = (
        "import django; django.setup()\n"
        "from continuum.checks import check_determinism\n"
        "from continuum.core.registry import registry\n"
        "print(len(registry.workflows()), [str(message) for message in check_determinism()])"
    )
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONPATH": os.pathsep.join([str(example), str(example.parent), *filter(None, sys.path)]),
    }
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=example)
    assert re.fullmatch(r"[1-9]\d* \[\]\n", ran.stdout), ran.stdout + ran.stderr


def test_the_workflows_of_the_tests_have_none_that_is_not_meant():
    """Those that misbehave on purpose say so in a comment."""
    from continuum.core.registry import registry

    shared = [flow for flow in registry.workflows() if flow.fn.__module__.startswith("tests.app.")]
    assert shared
    assert [f"{finding.place} {finding}" for finding in scan(shared)] == []
