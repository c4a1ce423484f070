"""The test project with workers that neither poll nor let a lease run out while a test lasts: hints have to do."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"LEASE_TTL": 7200, "POLL_INTERVAL": 3600, "DRAIN_TIMEOUT": 60}
