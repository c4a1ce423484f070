"""Settings of the test project. Without ``DATABASE_URL``, a PostgreSQL of its own is started and deleted at the end.

Each process of pytest-xdist has one for itself: tests end sessions, count what the server writes to its log and declare
workers dead, which those of another process would feel.
"""

import os

import environ

from continuum.testing.postgres import EmbeddedPostgres

# The process that starts and directs the others runs no tests: the first of them uses its server.
PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
# The process whose server DATABASE_URL names, unless somebody else has set it.
STARTED_BY = "CONTINUUM_TESTS_STARTED_BY"
POSTGRES = None

if "DATABASE_URL" not in os.environ or os.environ.get(STARTED_BY, PROCESS) != PROCESS:
    # Not durable, as nothing here outlives the session; tests about lost data start servers of their own.
    POSTGRES = EmbeddedPostgres.temporary(
        {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 200,
            "shared_buffers": "64MB",
        }
    ).start()
    # Left in the environment for the processes that tests start.
    os.environ["DATABASE_URL"] = POSTGRES.database_url()
    os.environ[STARTED_BY] = PROCESS

env = environ.Env()

SECRET_KEY = "for tests only"
USE_TZ = True
TIME_ZONE = "UTC"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "tests.urls"
# The server above is careless on purpose.
SILENCED_SYSTEM_CHECKS = ["continuum.W020", "continuum.W021", "continuum.W022"]
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

DATABASES = {"default": env.db("DATABASE_URL")}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "continuum",
    "tests.app",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
