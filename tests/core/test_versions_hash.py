"""The version hash: what changes it, what does not, and that every process agrees on it."""

import subprocess
import sys
import textwrap

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
