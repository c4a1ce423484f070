"""Pages without counting a table of millions."""

from django.core.paginator import Paginator
from django.utils.functional import cached_property

__all__ = ["CappedPaginator"]


class CappedPaginator(Paginator):
    """A paginator that counts, and pages, no further than ``cap`` rows.

    An exact count reads every row that matches, and a page far down reads all before it. Nobody looks for a run on page
    700: that is what the search and the filters are for.
    """

    cap = 10_000

    @cached_property
    def _counted(self) -> int:
        return self.object_list.order_by()[: self.cap + 1].count()

    @cached_property
    def count(self) -> int:
        return min(self._counted, self.cap)

    @property
    def is_capped(self) -> bool:
        """Whether there are more rows than are paged through."""
        return self._counted > self.cap
