"""The test project with runs given up sooner than out of the box, but tried in groups."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"MAX_RECOVERIES": 5}
