"""Settings of the test project. Without ``DATABASE_URL``, a PostgreSQL of its own is started and deleted at the end."""

import os

import environ

from continuum.testing.postgres import EmbeddedPostgres

if "DATABASE_URL" not in os.environ:
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
