"""Finding runs.

``queries`` asks, ``conditions`` says what can be asked, ``statements`` puts it so that PostgreSQL is fast.
"""

from continuum.search.queries import Page, acount, aquery, count, query

__all__ = ["Page", "acount", "aquery", "count", "query"]
