"""The SQL of the hot path: one statement a file, so that it can be read, explained and reviewed as SQL."""

from functools import cache
from importlib.resources import files

__all__ = ["load"]


@cache
def load(name: str) -> str:
    """Return the text of the statement ``name`` (the file ``<name>.sql`` beside this module), without its comments.

    Comments are for readers: of a statement of more than 4,096 bytes psycopg works out anew, at each execution, where
    its parameters stand.

    Raises:
        FileNotFoundError: there is no such statement.
    """
    text = files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
