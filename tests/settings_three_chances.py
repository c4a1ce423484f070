"""The test project with runs given up, workflows interrupted and deaths noticed sooner than out of the box."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"MAX_RECOVERIES": 3, "DEADLOCK_TIMEOUT": 0.5, "POLL_INTERVAL": 0.2}
