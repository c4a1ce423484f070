"""Continuum in projects that are set up otherwise than the one of these tests: each goes through a day there."""

from __future__ import annotations

import pytest
from django.db import connection

from tests.hosts import empty_database as empty_database, host as host

pytestmark = pytest.mark.django_db(transaction=True)


def test_languages_with_other_signs_in_numbers(host):
    project = host(
        """
        LANGUAGE_CODE, USE_THOUSAND_SEPARATOR = "de", True
        MIDDLEWARE = [*MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
        """
    )
    project.run("a_day()")


def test_a_project_without_the_admin_and_all_that_it_needs(host):
    project = host(
        """
        INSTALLED_APPS, MIDDLEWARE, TEMPLATES = ["continuum", "tests.app"], [], []
        del STATIC_URL
        ROOT_URLCONF = "urls"
        """,
        {"urls.py": "urlpatterns = []"},
    )
    project.manage("check", "--database", "default", "--fail-level", "WARNING")
    project.run("a_day(admin='')")


def test_below_a_path_without_static_files_app_or_slashes_to_append(host):
    project = host(
        """
        INSTALLED_APPS.remove("django.contrib.staticfiles")
        FORCE_SCRIPT_NAME, APPEND_SLASH, ROOT_URLCONF = "/shop", False, "urls"
        """,
        {
            "urls.py": """
            from django.contrib import admin
            from django.urls import path
            urlpatterns = [path("back/office/", admin.site.urls)]
            """
        },
    )
    project.run("a_day('/back/office/', '/shop')")


def test_admin_sites_and_a_user_model_of_the_projects_own(host, empty_database):
    """Users without a username; one site has all pages, one no workers, and Django's own is not used."""
    project = host(
        """
        INSTALLED_APPS = ["people", "django.contrib.admin.apps.SimpleAdminConfig", *INSTALLED_APPS[1:]]
        AUTH_USER_MODEL, ROOT_URLCONF, DEFAULT_AUTO_FIELD = "people.Person", "urls", "django.db.models.AutoField"
        """,
        {
            "people/__init__.py": "",
            "people/models.py": """
            from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
            from django.contrib.auth.models import PermissionsMixin
            from django.db import models

            class People(BaseUserManager):
                def create_superuser(self, email, password):
                    return self.create(email=email, is_superuser=True)

            class Person(AbstractBaseUser, PermissionsMixin):
                email = models.EmailField(unique=True, primary_key=True)
                is_staff = True
                objects = People()
                USERNAME_FIELD = "email"
            """,
            "urls.py": """
            from django.contrib.admin import AdminSite
            from django.urls import path
            from continuum.admin import DashboardAdmin, RunAdmin, WorkerAdmin
            from continuum.models import Dashboard, Run, Worker

            office, lab = AdminSite(name="office"), AdminSite(name="lab")
            office.register(Run, RunAdmin)
            office.register(Worker, WorkerAdmin)
            office.register(Dashboard, DashboardAdmin)
            lab.register(Run, RunAdmin)
            lab.register(Dashboard, DashboardAdmin)
            urlpatterns = [path("lab/", lab.urls), path("office/", office.urls)]
            """,
        },
        DATABASE_URL=empty_database("people"),
    )
    project.manage("makemigrations", "people")
    project.manage("migrate", "--run-syncdb")
    project.manage("makemigrations", "--check", "--dry-run")
    project.run("a_day('/office/')")
    project.run(
        """
        run = continuum.start(five_steps, 1)
        child = continuum.models.Run.objects.create(workflow="x", parent_run_id=run.id, parent_command_id="0:1")
        (page,) = visit(f"/lab/continuum/run/{child.id}/change/")
        assert f'href="/lab/continuum/run/{run.id}/change/"' in page
        visit("/lab/", "/lab/continuum/run/", "/lab/continuum/dashboard/", f"/lab/continuum/run/{run.id}/do/cancel/")
        """
    )


@pytest.mark.parametrize("routed", [True, False])
def test_a_database_beside_the_projects_own(routed, host, empty_database):
    project = host(
        f"""
        DATABASES["durable"] = env.db("DURABLE_URL")
        CONTINUUM = {{"DATABASE": "durable"}}
        DATABASE_ROUTERS = ["routers.Router"]
        SILENCED_SYSTEM_CHECKS = [*SILENCED_SYSTEM_CHECKS, "continuum.W015"] if {not routed} else SILENCED_SYSTEM_CHECKS
        """,
        {
            "routers.py": f"""
            class Router:
                def db_for_read(self, model, **hints):
                    return "durable" if {routed} and model._meta.app_label == "continuum" else None
                db_for_write = db_for_read
                def allow_migrate(self, db, app_label, **hints):
                    return (app_label == "continuum") is (db == "durable")
            """
        },
        DURABLE_URL=empty_database("durable"),
    )
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE continuum_runs RENAME TO out_of_reach")
    try:
        project.manage("migrate", "--database", "durable")
        project.manage("check", "--database", "default", "--database", "durable", "--fail-level", "WARNING")
        project.run("a_day()")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE out_of_reach RENAME TO continuum_runs")


def test_a_project_with_no_default_database(host, empty_database):
    project = host(
        """
        DATABASES = {"default": {}, "durable": env.db("DURABLE_URL")}
        CONTINUUM = {"DATABASE": "durable"}
        DATABASE_ROUTERS = ["routers.Router"]
        """,
        {
            "routers.py": """
            class Router:
                def db_for_read(self, model, **hints):
                    return "durable"
                db_for_write = db_for_read
            """
        },
        DURABLE_URL=empty_database("durable"),
    )
    project.manage("migrate", "--database", "durable", "--run-syncdb")
    project.manage("check", "--database", "durable", "--fail-level", "WARNING")
    project.run("a_day()")


@pytest.mark.parametrize(
    "database",
    [
        {"ATOMIC_REQUESTS": True, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True},
        {"OPTIONS": {"pool": {"min_size": 1, "max_size": 16}}},
        {"OPTIONS": {"server_side_binding": True}, "DISABLE_SERVER_SIDE_CURSORS": True},
    ],
    ids=["atomic requests and lasting connections", "a pool", "server-side binding behind a pooler"],
)
def test_connections_of_other_kinds(database, host):
    project = host(
        f"""
        given = {database!r}
        options = DATABASES["default"].get("OPTIONS", {{}}) | given.pop("OPTIONS", {{}})
        DATABASES["default"] |= {{**given, "OPTIONS": options}}
        """
    )
    project.run("a_day()")


@pytest.fixture
def owner():
    with connection.cursor() as cursor:
        cursor.execute('CREATE ROLE "Shop Owner"')
    yield
    with connection.cursor() as cursor:
        cursor.execute('DROP ROLE "Shop Owner"')


def test_names_that_need_quotes_and_a_schema_of_its_own(host, owner, empty_database):
    """Database, role and schema, in a project that asks for the last two by options."""
    project = host(
        r"""
        database = DATABASES["default"]
        database["OPTIONS"] |= {"options": r'-c search_path="The\ Shop"', "assume_role": "Shop Owner"}
        database["TEST"] = {"NAME": "Somewhere Else"}
        """,
        DATABASE_URL=empty_database('Shop "Orders" 1'),
    )
    with connection.cursor() as cursor:
        cursor.execute("""GRANT CREATE ON DATABASE "Shop ""Orders"" 1" TO "Shop Owner" """)
    project.run(
        """
        from django.db import connection
        with connection.cursor() as cursor:
            cursor.execute('CREATE SCHEMA "The Shop"')
        """
    )
    project.manage("migrate", "--run-syncdb")
    project.run(
        """
        a_day()
        from django.db import connection
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*), min(schemaname) FROM pg_tables WHERE tablename LIKE 'continuum_%'")
            number, schema = cursor.fetchone()
        assert number > 8 and schema == "The Shop"
        from continuum import upkeep
        assert upkeep.rights().owner == "Shop Owner"
        """
    )


def test_files_whose_names_have_their_hash(host, tmp_path):
    project = host(
        """
        STORAGES = {
            "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
        }
        STATIC_ROOT, DEBUG = "static", False
        """
    )
    project.manage("collectstatic", "--no-input")
    project.run(
        """
        import re
        (page,) = visit("/admin/continuum/dashboard/")
        assert re.search(r'href="/static/continuum/admin[.][0-9a-f]{12}[.]css"', page)
        assert re.search(r'src="/static/continuum/live[.][0-9a-f]{12}[.]js"', page)
        """
    )


def test_json_of_the_projects_own_and_a_log_of_all_there_is(host):
    """What a project has told psycopg about JSON is for its own values; and no record of the log is ill-formed."""
    project = host(
        """
        DEBUG = True
        LOGGING = {
            "version": 1,
            "handlers": {"all": {"class": "logging.FileHandler", "filename": "all.log", "formatter": "all"}},
            "formatters": {"all": {"format": "{name} {levelname} {message}", "style": "{"}},
            "root": {"handlers": ["all"], "level": 1},
        }
        """
    )
    project.run(
        """
        from psycopg.types import json

        def refuse(*arguments):
            raise TypeError("only for the project's own values")

        json.set_json_loads(refuse)
        json.set_json_dumps(refuse)
        a_day()
        """
    )
    assert "continuum.worker INFO" in (project.folder / "all.log").read_text()
