"""The admin: runs and workers, to look at.

``runs`` and ``workers`` hold the pages; ``payloads`` reads what may be large or unreadable, ``wording`` says things in
words, ``filters`` and ``pagination`` keep the list fast however many runs there are.
"""

from continuum.admin.runs import RunAdmin
from continuum.admin.workers import WorkerAdmin

__all__ = ["RunAdmin", "WorkerAdmin"]
