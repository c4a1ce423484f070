"""The test project with leases that end soon."""

from tests.settings import *  # noqa: F403

CONTINUUM = {"LEASE_TTL": 2}
