"""Which functions of the project a workflow can call, and where its patches are."""

import pytest

from continuum.core.code.callees import callees
from continuum.core.code.patches import patch_sites

HELPERS = """
    import functools
    from continuum import activity, workflow

    def helper():
        return deeper()

    def deeper():
        return 1

    def unused():
        return 2

    @activity
    def work():
        return unused()

    @workflow
    async def other():
        return unused()

    def wrapping(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return fn(*args)
        return wrapper

    @wrapping
    def wrapped():
        return deeper()

    @functools.lru_cache
    def kept():
        return deeper()

    partial = functools.partial(helper)
    TABLE = {"a": helper, "b": [deeper]}

    class Base:
        def inherited(self):
            return self.hook()

        def hook(self):
            return 0

    class Desk(Base):
        default = 5

        def __init__(self, name):
            self.name = name

        def serve(self):
            return deeper()

        @property
        def size(self):
            return helper()

        @classmethod
        def make(cls):
            return cls("x")

        @staticmethod
        def plain():
            return 1

        def hook(self):
            return 1

        def never_named(self):
            return 1
"""


def reached(project, body, header="from {here} import helpers\nfrom {here}.helpers import *", parameters=""):
    project.write(HELPERS, "helpers")
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    source = f"import functools\nimport continuum\nfrom continuum import side_effect\n{header}\n\n"
    module = project.module(f"{source}async def flow({parameters}):\n{lines}\n")
    return {each.qualname for each in callees(module.flow)} - {"flow"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("helper()", {"helper", "deeper"}),
        ("helpers.helper()", {"helper", "deeper"}),
        ("x = helper\nx()", {"helper", "deeper"}),
        ("sorted([], key=deeper)", {"deeper"}),
        ("wrapped()", {"wrapped", "deeper"}),
        ("kept()", {"kept", "deeper"}),
        ("partial()", {"helper", "deeper"}),
        ("functools.partial(deeper)()", {"deeper"}),
        ("TABLE['a']()", {"helper", "deeper"}),
        ("helpers.TABLE['a']()", {"helper", "deeper"}),
        ("def inner():\n    return deeper()\nreturn inner", {"deeper"}),
        ("return (lambda: deeper())()", {"deeper"}),
        ("[deeper() for _ in range(3)]", {"deeper"}),
        ("from {here}.helpers import deeper as d\nd()", {"deeper"}),
        ("import {here}.helpers as h\nh.deeper()", {"deeper"}),
        ("import {here}.helpers\n{here}.helpers.deeper()", {"deeper"}),
        ("helper = None\nhelper()", set()),
        ("deeper = print\ndeeper()", set()),
        ("await work()", set()),
        ("await work.options(timeout=1)()", set()),
        ("work.bind()", set()),
        ("await other()", set()),
        ("work.call()", {"work", "unused"}),
        ("side_effect(helper)", set()),
        ("continuum.side_effect(lambda: helper())", set()),
        ("side_effect(functools.partial(helper))", set()),
        ("def read():\n    return helper()\nreturn side_effect(read)", set()),
        ("def read():\n    return deeper()\nside_effect(read)\nreturn read()", {"deeper"}),
        ("side_effect(print, helper())", {"helper", "deeper"}),
        ("Desk('x')", {"Desk.__init__"}),
        ("Desk('x').serve()", {"Desk.__init__", "Desk.serve", "deeper"}),
        ("Desk('x').size", {"Desk.__init__", "Desk.size", "helper", "deeper"}),
        ("Desk.make()", {"Desk.make", "Desk.__init__"}),
        ("Desk.plain()", {"Desk.plain"}),
        ("Desk('x').inherited()", {"Desk.__init__", "Base.inherited", "Desk.hook"}),
        ("Desk.default", set()),
        ("desk = continuum\ndesk = Desk('x')\ndesk.serve()", {"Desk.__init__", "Desk.serve", "deeper"}),
    ],
)
def test_what_is_reached(project, body, expected):
    body = body.replace("{here}", project.name)
    assert reached(project, body) == expected


@pytest.mark.parametrize("annotation", ["Desk", "'Desk'", "Desk | None", "list[Desk]", "helpers.Desk"])
def test_annotated_parameters_have_methods(project, annotation):
    assert reached(project, "desk.serve()", parameters=f"desk: {annotation}") == {"Desk.serve", "deeper"}


def test_a_call_chain_names_each_call_and_where_it_is(project):
    path = project.write(HELPERS, "helpers")
    module = project.module(
        """
        from {here}.helpers import helper as h

        async def flow():
            if True:
                return h()
        """
    )
    *_, deeper = callees(module.flow)
    assert [(call.function, call.file, call.line) for call in deeper.chain] == [
        ("helper", module.__file__, 6),
        ("deeper", str(path), 6),
    ]
    assert (deeper.file, deeper.node.lineno) == (str(path), 8)


def test_a_function_is_reached_once_by_its_shortest_chain(project):
    module = project.module(
        """
        async def flow():
            a()
            b()

        def a():
            b()
            flow

        def b():
            a()
        """
    )
    assert [(each.qualname, len(each.chain)) for each in callees(module.flow)] == [("flow", 0), ("a", 1), ("b", 1)]


def test_methods_found_by_name_alone_are_not_certain(project):
    module = project.module(
        """
        class Mail:
            def send(self):
                return 1

        def make():
            return Mail()

        async def flow(anything):
            make()
            anything.send()
        """
    )
    assert {each.qualname: each.certain for each in callees(module.flow)} == {
        "flow": True,
        "make": True,
        "Mail.send": False,
    }


def test_a_method_whose_name_is_computed_may_be_any(project):
    module = project.module(
        """
        class Machine:
            def run(self, kind):
                return getattr(self, f"do_{kind}")()

            def do_a(self):
                return 1

        async def flow(kind):
            return Machine().run(kind)
        """
    )
    assert {each.qualname: each.certain for each in callees(module.flow)} == {
        "flow": True,
        "Machine.run": True,
        "Machine.do_a": False,
    }


def test_what_stands_around_a_workflow_is_found_in_its_closure(project):
    module = project.module(
        """
        def make(helper):
            async def flow():
                return helper()
            return flow

        def helper():
            return 1

        flow = make(lambda: helper())
        """
    )
    assert [each.qualname for each in callees(module.flow)] == ["make.<locals>.flow", "<lambda>", "helper"]


def test_libraries_are_not_followed(project):
    module = project.module(
        """
        import json, pytest
        import continuum

        async def flow():
            json.dumps({})
            pytest.importorskip("json")
            await continuum.sleep(1)
        """
    )
    assert [each.qualname for each in callees(module.flow)] == ["flow"]


def test_a_workflow_whose_source_is_gone_reaches_nothing():
    namespace = {}
    exec("async def flow(): pass", namespace)
    assert callees(namespace["flow"]) == ()


def test_patches_are_found_under_any_name(project):
    helpers = project.write(
        """
        import continuum as c
        from continuum import patched as is_new

        RENAMED = "renamed"

        def price():
            return 1 if is_new("price") else 2

        def label(name):
            return c.patched(name), c.patched(RENAMED)

        def unused():
            return is_new("unused")
        """,
        "helpers",
    )
    module = project.module(
        """
        import continuum
        from {here} import helpers

        @continuum.workflow
        async def flow():
            helpers.price()
            def inner():
                return continuum.patched("inner")
            return inner(), helpers.label("x")
        """
    )
    assert patch_sites(module.flow) == [
        ("inner", module.__file__, 9),
        ("price", str(helpers), 8),
        (None, str(helpers), 11),
        ("renamed", str(helpers), 11),
    ]


def test_patches_of_children_are_their_own(project):
    module = project.module(
        """
        from continuum import patched, workflow

        @workflow
        async def child():
            return patched("child")

        @workflow
        async def flow():
            return await child()
        """
    )
    assert patch_sites(module.flow) == []
