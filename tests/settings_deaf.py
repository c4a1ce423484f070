"""The test project with workers that hear no hints: they listen on a database where nobody speaks."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, SILENCED_SYSTEM_CHECKS

DATABASES = {**DATABASES, "elsewhere": {**DATABASES["default"], "NAME": "postgres"}}
CONTINUUM = {"LISTEN_DATABASE": "elsewhere"}
SILENCED_SYSTEM_CHECKS = [*SILENCED_SYSTEM_CHECKS, "continuum.E012"]  # which would refuse them
