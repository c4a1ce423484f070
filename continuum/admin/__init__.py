"""The admin: a dashboard, runs and workers.

``dashboard``, ``runs`` and ``workers`` hold the pages; ``details`` and ``storyline`` what the page of a run shows;
``payloads`` reads what may be large or unreadable, ``wording`` says things in words, ``filters`` and ``pagination``
keep the list fast however many runs there are.
"""

from continuum.admin.dashboard import DashboardAdmin
from continuum.admin.runs import RunAdmin
from continuum.admin.workers import WorkerAdmin

__all__ = ["DashboardAdmin", "RunAdmin", "WorkerAdmin"]
