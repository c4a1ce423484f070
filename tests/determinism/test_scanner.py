"""The scanner: what each rule finds, and what it leaves alone."""

import textwrap

import pytest

from continuum import workflow
from continuum.determinism.scanner import scan
from tests.determinism.snippets import FOUND, NOT_FOUND


def findings(project, snippet, trusted=()):
    header, _, body = snippet.rpartition("---\n")
    source = f"{header}\nasync def flow():\n{textwrap.indent(body, '    ')}\n"
    return scan([workflow(project.module(source).flow)], trusted=trusted)


@pytest.mark.parametrize(
    ("rule", "snippet"), [(rule, snippet) for rule, snippets in FOUND.items() for snippet in snippets]
)
@pytest.mark.filterwarnings("ignore:'return' in a 'finally' block:SyntaxWarning")  # Python itself, since 3.14
def test_it_is_found(project, rule, snippet):
    assert rule in {finding.rule.id for finding in findings(project, snippet)}


@pytest.mark.parametrize("snippet", NOT_FOUND)
def test_it_is_left_alone(project, snippet):
    assert [f"{finding.place} {finding}" for finding in findings(project, snippet)] == []
