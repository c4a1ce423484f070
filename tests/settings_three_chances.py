"""The test project with runs given up sooner, and workflows interrupted sooner, than out of the box."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"MAX_RECOVERIES": 3, "DEADLOCK_TIMEOUT": 0.5}
