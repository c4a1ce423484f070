"""The test project with little patience for activities that kill their workers."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"MAX_RECOVERIES": 3, "POLL_INTERVAL": 0.2}
