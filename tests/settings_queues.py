"""The test project with limits on a queue, and other settings, from the environment: ``QUEUE_LIMITS`` is JSON."""

import json
import os

from tests.settings import *  # noqa: F403

CONTINUUM = {"QUEUES": json.loads(os.environ["QUEUE_LIMITS"]), **json.loads(os.environ.get("QUEUE_SETTINGS", "{}"))}
