"""The test project as chaos wants it: leases that end soon, queues with limits."""

from tests.settings import *  # noqa: F403

CONTINUUM = {
    "LEASE_TTL": 2,
    "POLL_INTERVAL": 0.5,
    "DRAIN_TIMEOUT": 1,
    "ACTIVITY_THREADS": 6,
    "QUEUES": {
        "few": {"cluster_concurrency": 3},
        "slowly": {"rate": (40, 1.0), "concurrency": 2},
        "paced": {"rate": (30, 0.5)},
    },
    "WORKFLOW_MODULES": ["tests.chaos.workflows"],
}
