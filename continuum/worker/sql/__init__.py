"""The SQL of the hot path: one statement a file, so that it can be read, explained and reviewed as SQL."""

from functools import cache
from importlib.resources import files

__all__ = ["load"]


@cache
def load(name: str) -> str:
    """Return the text of the statement ``name`` (the file ``<name>.sql`` beside this module).

    Raises:
        FileNotFoundError: there is no such statement.
    """
    return files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
