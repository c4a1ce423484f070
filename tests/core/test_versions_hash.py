"""The version hash: what changes it, what does not, and that every process agrees on it."""

import importlib
import os
import subprocess
import sys
import textwrap

import pytest

from continuum.core.versions import source_hash


def hash_of(tmp_path, source, name="flow"):
    """Hash a function from a file of its own, as source can only be had from files."""
    path = tmp_path / f"m{abs(hash(source))}.py"
    path.write_text(textwrap.dedent(source))
    namespace = {"__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return source_hash(namespace[name])


PLAIN = """
    async def flow(order):
        receipt = await charge(order, 5)
        return f"{receipt!r:>{order}}"
"""


def test_comments_layout_docstrings_and_decorators_do_not_count(tmp_path):
    dressed = '''
        def decorator(fn):
            return fn

        @decorator
        async def flow(
            order,
        ):
            """What it does."""
            # how it does it
            receipt = await charge(
                order, 5
            )

            return f"{receipt!r:>{order}}"  # noqa
    '''
    assert hash_of(tmp_path, dressed) == hash_of(tmp_path, PLAIN)


def test_every_change_of_the_code_counts(tmp_path):
    changes = [
        ("charge", "refund"),
        ("order, 5", "order, 6"),
        ("order, 5", "order, 5.0"),
        ("order, 5", "order, True"),
        ("order, 5", "5, order"),
        ("!r", "!s"),
        ("await charge(order, 5)", "charge(order, 5)"),
        ("flow(order)", "flow(order, more=None)"),
        ("return f", "yield f"),
    ]
    hashes = [hash_of(tmp_path, PLAIN.replace(old, new)) for old, new in changes]
    assert len({hash_of(tmp_path, PLAIN), *hashes}) == len(changes) + 1


def test_a_docstring_is_only_a_docstring_in_the_first_place(tmp_path):
    assert hash_of(tmp_path, "async def flow():\n    'a'\n    'b'\n") != hash_of(
        tmp_path, "async def flow():\n    'a'\n    'c'\n"
    )


def test_an_indented_function_with_flush_text_hashes_as_its_flush_twin(tmp_path):
    flush = "async def flow():\n    return '''one\ntwo'''\n"
    nested = "class C:\n    async def flow():\n        return '''one\ntwo'''\nflow = C.flow\n"
    assert hash_of(tmp_path, nested) == hash_of(tmp_path, flush)


def test_the_hash_is_the_same_on_every_python_version(tmp_path):
    # Recorded on 3.11. What it covers is where the syntax trees of the versions differ.
    source = r"""
        async def flow(x: int = 1, *, y: "str" = '2') -> int:
            z = f"{x!r:>{y}} a" f"b{y}" "c" + f"{x:}" + rf"\d{x=}" + "é\ud800"
            match x:
                case {"a": [1, *r], **kw} if r:
                    return 1
                case int() | None:
                    pass
            try:
                async with x as y, z:
                    del x[1:2, ::3]
            except* ValueError as e:
                raise e from None
            return [i async for i in z if not -1], lambda *a, k=1, **kw: 1e300
    """
    assert hash_of(tmp_path, source) == "82bbac27b2142ae0"


def test_a_function_without_source_hashes_alike_in_every_process():
    script = (
        "from continuum.core.versions import source_hash\n"
        "namespace = {}\n"
        "exec('async def flow(a):\\n    return [(lambda: {1, 2, \"x\"})() for _ in a]', namespace)\n"
        "print(source_hash(namespace['flow']))"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(hashes) == 1


# Helpers and constants

FLOW = """
    from {here} import helpers
    from {here}.helpers import LIMIT as most, fee, Desk

    async def flow(cents: int):
        if cents > most:
            return Desk().serve(cents)
        return fee(cents) + helpers.RATES["basic"]
"""
HELPERS = """
    from datetime import timedelta
    from enum import Enum
    from continuum import activity

    LIMIT = 5
    STEP = 2
    RATES = {"basic": 3, "days": timedelta(days=STEP)}
    UNREAD = 1

    class Kind(Enum):
        SMALL = "s"

    class Desk:
        patience = 3

        def serve(self, cents):
            return self.patience, work, Kind.SMALL

        def unused(self):
            return 1

    @activity
    def work():
        return 1

    def fee(cents):
        return round(cents * share())

    def share():
        return 0.1

    def unused():
        return 1
"""


def hash_with(project, helpers):
    project.write(helpers, "helpers")
    return source_hash(project.module(FLOW).flow)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cents * share()", "share() * cents"),
        ("return 0.1", "return 0.2"),
        ("LIMIT = 5", "LIMIT = 6"),
        ('"basic": 3', '"basic": 4'),
        ("STEP = 2", "STEP = 3"),
        ("return self.patience", "return -self.patience"),
        ("patience = 3", "patience = 4"),
        ('SMALL = "s"', 'SMALL = "t"'),
    ],
)
def test_what_the_workflow_calls_and_reads_counts(project, make_project, old, new):
    assert old in HELPERS
    assert hash_with(project, HELPERS) != hash_with(make_project(), HELPERS.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    def fee", "    # a comment\n\n    def fee"),
        ("return 0.1", "'''What it takes.'''\n        return (\n            0.1)"),
        ("UNREAD = 1", "UNREAD = 2"),
        ("def unused():\n        return 1", "def unused():\n        return 2"),
        ("def unused(self):\n            return 1", "def unused(self):\n            return 2"),
        ("def work():\n        return 1", "def work():\n        return 2"),
        ("@activity", "@activity(timeout=5)"),
    ],
)
def test_what_it_neither_calls_nor_reads_does_not_count(project, make_project, old, new):
    assert old in HELPERS
    assert hash_with(project, HELPERS) == hash_with(make_project(), HELPERS.replace(old, new))


def test_where_a_helper_stands_does_not_count(project, make_project):
    moved = HELPERS.replace("    def share():\n        return 0.1\n", "") + "\n    from {here}.elsewhere import share\n"
    other = make_project()
    other.write("def share():\n    return 0.1\n", "elsewhere")
    assert hash_with(project, HELPERS) == hash_with(other, moved)


def test_two_helpers_that_change_places_count(project, make_project):
    source = """
        def one():
            return 1

        def other():
            return 2

        {0}, {1} = one, other

        async def flow():
            return first(), second()
    """
    straight = source.replace("{0}, {1}", "first, second")
    crossed = source.replace("{0}, {1}", "second, first")
    assert source_hash(project.module(straight).flow) != source_hash(make_project().module(crossed).flow)


def test_helpers_that_call_each_other_in_a_circle(project):
    module = project.module(
        """
        def odd(n):
            return n != 0 and even(n - 1)

        def even(n):
            return n == 0 or odd(n - 1)

        async def flow(n):
            return odd(n)
        """
    )
    assert len(source_hash(module.flow)) == 16


def test_a_helper_that_resists_being_looked_at_breaks_nothing(project):
    module = project.module(
        """
        class Hostile:
            def __getattribute__(self, name):
                raise RuntimeError("hands off")

            def __eq__(self, other):
                raise RuntimeError("hands off")

        hostile = Hostile()
        holder = {"hostile": hostile}

        async def flow():
            return hostile.thing(), holder["hostile"], hostile
        """
    )
    assert len(source_hash(module.flow)) == 16


def test_the_hash_does_not_depend_on_what_was_imported_before(project, make_project):
    late = """
        async def flow():
            from .helpers import fee
            return fee(1)
    """
    hashes = set()
    for each, early in ((project, True), (make_project(), False)):
        each.write(HELPERS, "helpers")
        if early:
            importlib.import_module(f"{each.name}.helpers")
        hashes.add(source_hash(each.module(late).flow))
    assert len(hashes) == 1


def test_the_hash_with_helpers_is_the_same_on_every_python_version_and_machine(tmp_path):
    # Recorded on 3.11; CI runs it on the others.
    package = tmp_path / "steady"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helpers.py").write_text(textwrap.dedent(HELPERS))
    (package / "flows.py").write_text(textwrap.dedent(FLOW.replace("{here}", "steady")))
    script = "from steady.flows import flow; from continuum.core.versions import source_hash; print(source_hash(flow))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONHASHSEED": "random"}
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()
        for _ in range(2)
    }
    assert hashes == {"b854aedad849083f"}
