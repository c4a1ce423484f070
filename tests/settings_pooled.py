"""The test project behind a transaction pooler. ``DIRECT_URL``, if given, is the way around it for notifications."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, env

CONTINUUM = {
    "WORKFLOW_MODULES": ["tests.app.everything_workflows", "tests.app.trouble_workflows"],
    "LEASE_TTL": float(os.environ.get("LEASE_TTL", "30")),
}
if os.environ.get("POOLER_DECLARED") == "1":
    DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True
if "DIRECT_URL" in os.environ:
    DATABASES = {**DATABASES, "direct": env.db("DIRECT_URL")}
    CONTINUUM["LISTEN_DATABASE"] = "direct"
