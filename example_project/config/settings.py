"""Settings of the example project. Everything that differs between machines comes from the environment."""

from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
env.read_env(BASE_DIR / ".env")

DATA_DIR = Path(env.str("EXAMPLE_DATA_DIR", default=str(BASE_DIR / ".data")))
"""The embedded database and the demo's logs."""

# Not a secret: this key is in a public repository and good for nothing but trying the example on your own machine.
SECRET_KEY = env.str("SECRET_KEY", default="development-only-key-published-with-the-example-do-not-deploy")
DEBUG = env.bool("DEBUG", default=True)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=[])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "continuum",
    "shop",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

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

if env.str("DATABASE_URL", default=""):
    DATABASES = {"default": env.db("DATABASE_URL")}
    DATABASE_DESCRIPTION = "the one DATABASE_URL names"
else:
    # Each process that loads these settings attaches to one server; the last one to leave stops it.
    from continuum.testing.postgres import EmbeddedPostgres

    EMBEDDED = EmbeddedPostgres(DATA_DIR).start()
    DATABASES = {"default": EMBEDDED.django_database()}
    DATABASE_DESCRIPTION = f"embedded PostgreSQL in {EMBEDDED.data_dir}"

# A worker's threads keep their connections between activities instead of opening one for each.
DATABASES["default"] |= {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}

CONTINUUM = {
    # Seconds until a worker that went silent is given up and its runs move on. A killed process is usually missed in a
    # second, because its database session ends with it; the lease is for the rest, such as a network that is cut.
    # Small, so that the demo is quick in any case; the default of 30 suits production, where slow must not look dead.
    "LEASE_TTL": 5,
    # One file at a time in the whole cluster, however many workers there are.
    "QUEUES": {"exports": {"concurrency": 1, "cluster_concurrency": 1}},
}

SHOP_LATENCY = env.float("SHOP_LATENCY", default=0.15)
"""Seconds the pretended payment gateway and carrier take to answer."""

SHOP_PACKING_SECONDS = env.float("SHOP_PACKING_SECONDS", default=2.0)
"""Seconds the pretended warehouse takes to pack a parcel: a durable timer in the workflow."""

SHOP_EXPORTS_DIR = DATA_DIR / "exports"
"""Where exports are written: a place all workers reach, as they may continue each other's files."""

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
