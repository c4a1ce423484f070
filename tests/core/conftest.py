from collections.abc import Iterator

import pytest

from tests.core.driver import close_all


@pytest.fixture(autouse=True)
def _released_runs() -> Iterator[None]:
    """No test leaves a live run behind."""
    yield
    close_all()
