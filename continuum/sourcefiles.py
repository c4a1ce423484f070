"""Files of code as people know them: by their place in the project, not on this machine."""

from __future__ import annotations

import os
import sys
from functools import cache

from django.conf import settings as django_settings

__all__ = ["shown"]

_INSTALLED = ("site-packages", "dist-packages")


def shown(file: str) -> str:
    """Return a file's path as seen from ``BASE_DIR``; elsewhere, and if installed, from where Python finds modules.

    What lies in neither keeps its path, as does what has none (``"<stdin>"``).
    """
    if not os.path.isabs(file):
        return file
    for root in _roots(str(getattr(django_settings, "BASE_DIR", "")), tuple(sys.path)):
        if file.startswith(root):
            return file[len(root) :]
    return file


@cache
def _roots(base: str, search_path: tuple[str, ...]) -> list[str]:
    """Return the folders to see files from, with a separator at the end, the one that counts first."""
    found = sorted({os.path.abspath(each) for each in search_path}, key=len, reverse=True)
    # A virtual environment often lies in the project.
    installed = [folder for folder in found if folder.endswith(_INSTALLED)]
    project = [os.path.abspath(base)] if base else []
    return [folder.rstrip(os.sep) + os.sep for folder in [*installed, *project, *found] if folder != os.sep]
