"""The test project with runs given up and deaths noticed sooner than out of the box; suspects are tried in groups."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"MAX_RECOVERIES": 5, "POLL_INTERVAL": 0.2}
