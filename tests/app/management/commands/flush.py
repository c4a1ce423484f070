"""What Django empties the database with after each test that commits, without what takes most of the time.

Django truncates every table of the project, each with its indexes, and makes content types and permissions anew. That
takes longer than most tests. Here only tables that hold something are truncated, and content types and permissions stay
unless a test has changed them: then Django's way is gone.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management.commands import flush
from django.db import connections

KEPT = (ContentType, Permission)

# Pages rather than rows: what is deleted leaves them behind, and the next test would pay for them. A partition is
# known by the table it is of.
HOLDING_SOMETHING = """
    SELECT quote_ident(c.relname)
    FROM pg_class c
    LEFT JOIN pg_class root ON root.oid = pg_partition_root(c.oid)
    WHERE c.relnamespace = current_schema()::regnamespace
      AND c.relkind = 'r'
      AND coalesce(root.relname, c.relname) = ANY(%s)
      AND pg_relation_size(c.oid) > 0
"""


class Command(flush.Command):
    def handle(self, **options: Any) -> None:
        database = options["database"]
        if not _as_migrated(database):
            super().handle(**options)
            return
        connection = connections[database]
        kept = {model._meta.db_table for model in KEPT}
        emptied = [name for name in connection.introspection.django_table_names() if name not in kept]
        with connection.cursor() as cursor:
            cursor.execute(HOLDING_SOMETHING, [emptied])
            if tables := [name for (name,) in cursor.fetchall()]:
                # With those that refer to them, which are empty if they are not among them.
                cursor.execute(f"TRUNCATE {', '.join(tables)} CASCADE")


def _as_migrated(database: str) -> bool:
    """Whether content types and permissions are those that come with the models."""
    models = apps.get_models()
    types = {(model._meta.app_label, model._meta.model_name) for model in models}
    permissions = {
        (model._meta.app_label, model._meta.model_name, codename)
        for model in models
        for codename in (
            *(f"{action}_{model._meta.model_name}" for action in model._meta.default_permissions),
            *(codename for codename, _ in model._meta.permissions),
        )
    }
    return (
        set(ContentType.objects.using(database).values_list("app_label", "model")) == types
        and set(
            Permission.objects.using(database).values_list("content_type__app_label", "content_type__model", "codename")
        )
        == permissions
    )
