"""Paths of code as people know them."""

import sys
from pathlib import Path

import django
import pytest

from continuum.sourcefiles import shown

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("search_path", "file", "expected"),
    [
        (["/srv/shop"], "/srv/shop/orders/workflows.py", "orders/workflows.py"),
        (["/srv/shop/src", "/srv/shop"], "/srv/shop/src/orders/workflows.py", "src/orders/workflows.py"),
        (["/lib/site-packages"], "/lib/site-packages/billing/flows.py", "billing/flows.py"),
        (["/srv/shop/.venv/site-packages"], "/srv/shop/.venv/site-packages/billing/flows.py", "billing/flows.py"),
        (["/opt", "/opt/shared"], "/opt/shared/flows.py", "flows.py"),
        (["/srv/shop"], "/srv/shop2/flows.py", "/srv/shop2/flows.py"),
        (["/"], "/elsewhere/flows.py", "/elsewhere/flows.py"),
        ([], "<stdin>", "<stdin>"),
    ],
)
def test_a_file_is_seen_from_the_project_and_what_is_installed_from_where_it_is(
    search_path, file, expected, monkeypatch, settings
):
    settings.BASE_DIR = Path("/srv/shop")
    monkeypatch.setattr(sys, "path", search_path)
    assert shown(file) == expected


def test_a_project_without_base_dir_is_seen_from_where_python_finds_it(settings):
    assert not hasattr(settings, "BASE_DIR")
    assert shown(__file__) == "tests/test_sourcefiles.py"
    assert shown(django.__file__) == "django/__init__.py"
