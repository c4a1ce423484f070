"""The test project with workers that notice a death sooner than out of the box."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"POLL_INTERVAL": 0.2}
