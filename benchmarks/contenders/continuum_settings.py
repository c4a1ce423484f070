"""Django settings of the measured worker: all that is Continuum's own stays at its default."""

import os

SECRET_KEY = "for measurements only"
USE_TZ = True
INSTALLED_APPS = ["continuum"]
CONTINUUM = {"WORKFLOW_MODULES": ["benchmarks.contenders.continuum_flows"]}
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["BENCHMARK_DATABASE"],
        "USER": os.environ["BENCHMARK_USER"],
        "HOST": os.environ["BENCHMARK_SOCKET"],
        "PORT": os.environ["BENCHMARK_PORT"],
        "CONN_MAX_AGE": None,
    }
}
