"""Rules of group 2: Django and the database."""

from __future__ import annotations

from continuum.determinism.rule import Rule, within

__all__ = ["IN_DJANGO"]

IN_DJANGO: tuple[Rule, ...] = (
    Rule(
        id="D201",
        title="the ORM",
        does="uses the database",
        advice="Read and write rows in an activity and return what the workflow needs of them.",
        names=(
            *within("django.db.models.base.Model", "save asave delete"),
            *within("django.db.models.base.Model", "adelete refresh_from_db arefresh_from_db save_base"),
            *within("django.db.models.base.Model", "full_clean validate_unique validate_constraints"),
            *within("django.db.models", "prefetch_related_objects aprefetch_related_objects"),
            *within("django.shortcuts", "get_object_or_404 aget_object_or_404 get_list_or_404 aget_list_or_404"),
            *within("django.contrib.auth", "authenticate aauthenticate login alogin logout alogout get_user aget_user"),
        ),
        instances=("django.db.models.manager.BaseManager", "django.db.models.query.QuerySet"),
    ),
    Rule(
        id="D202",
        title="relations of model instances",
        does="may load rows from the database",
        advice="Read the related rows in an activity and return what the workflow needs of them.",
        instances=("django.db.models.fields.related_descriptors",),
        certain=False,
    ),
    Rule(
        id="D203",
        title="transactions",
        does="controls a transaction",
        advice="Write in an activity with transactional=True: its rows and its result commit together.",
        names=("django.db.transaction.*",),
    ),
    Rule(
        id="D204",
        title="database connections",
        does="uses a database",
        advice="Read and write in an activity and return what the workflow needs.",
        names=(
            *within("django.db", "connection connections close_old_connections reset_queries"),
            *within("psycopg", "connect Connection.* AsyncConnection.* Cursor.* AsyncCursor.*"),
            "psycopg2.*",
            "psycopg_pool.*",
            *within("sqlite3", "connect Connection.* Cursor.*"),
            *within("sqlalchemy", "create_engine engine.base.* orm.session.* ext.asyncio.*"),
            *(
                f"{package}.*"
                for package in ("asyncpg", "aiosqlite", "MySQLdb", "pymysql", "oracledb", "pymongo", "motor")
            ),
        ),
        instances=("django.db.backends.base.base.BaseDatabaseWrapper", "django.db.backends.utils.CursorWrapper"),
    ),
    Rule(
        id="D205",
        title="the cache",
        does="uses the cache",
        advice="Read and write the cache in an activity.",
        names=("django.core.cache.cache", "django.core.cache.caches"),
        instances=("django.core.cache.backends.base.BaseCache",),
    ),
    Rule(
        id="D206",
        title="mail",
        does="sends mail",
        advice="Send mail in an activity.",
        names=(
            *within("django.core.mail", "send_mail send_mass_mail mail_admins mail_managers get_connection"),
            *within("django.core.mail.message", "EmailMessage.send"),
            *within("django.contrib.auth.models", "AbstractUser.email_user"),
            "smtplib.*",
        ),
    ),
    Rule(
        id="D207",
        title="file storage",
        does="uses file storage",
        advice="Read and write stored files in an activity.",
        names=(*within("django.core.files.storage", "default_storage storages"),),
        instances=("django.core.files.storage.base.Storage", "django.db.models.fields.files.FieldFile"),
    ),
    Rule(
        id="D208",
        title="Django's signals",
        does="calls whoever listens, in the middle of a replay as well",
        advice="Send the signal in an activity.",
        names=(
            *within("django.dispatch.dispatcher", "Signal.send Signal.asend Signal.send_robust Signal.asend_robust"),
        ),
    ),
    Rule(
        id="D209",
        title="task queues",
        does="enqueues a task",
        advice="Make it an activity and await that, or enqueue the task in an activity.",
        names=(
            *within("django.tasks.base", "Task.enqueue Task.aenqueue Task.get_result Task.aget_result"),
            *within("django_tasks.task", "Task.enqueue Task.aenqueue"),
            *within("celery.app.task", "Task.delay Task.apply_async Task.apply Task.retry"),
            *within("celery.canvas", "Signature.delay Signature.apply_async Signature.apply"),
            *within("celery", "chain chord group"),
            *within("celery.app.base", "Celery.send_task"),
            *within("celery.result", "AsyncResult ResultBase.* AsyncResult.*"),
            *within("rq", "Queue Queue.* get_current_job"),
            *within("rq.queue", "Queue Queue.*"),
            *within("rq.decorators", "*"),
            *within("django_rq", "enqueue get_queue get_connection"),
            *within("django_q.tasks", "*"),
            *within("huey.api", "Huey.* TaskWrapper.* Result.*"),
            *within("dramatiq.actor", "Actor.send Actor.send_with_options"),
            *within("procrastinate.tasks", "Task.defer Task.defer_async Task.configure"),
        ),
    ),
    Rule(
        id="D210",
        title="settings",
        does="may be set otherwise when this history is replayed",
        advice="Read it through side_effect(), or pass it to the workflow: the value first seen counts.",
        names=("django.conf.settings",),
        certain=False,
    ),
    Rule(
        id="D211",
        title="continuum's calls for application code",
        does="writes to the database, or reads from it",
        advice="Call another workflow, or start_child(), instead of start(); do the rest in an activity.",
        names=(
            "continuum.client.*",
            "continuum.labelling.*",
            "continuum.reopening.*",
            "continuum.search.*",
            "continuum.starting.*",
            "continuum.waiting.*",
        ),
        allowed=("continuum.client.NotInWorkflowError",),
    ),
    Rule(
        id="D212",
        title="templates",
        does="may read another template when this history is replayed",
        advice="Render in an activity, where the text is used.",
        names=within("django.template.loader", "render_to_string get_template select_template"),
        certain=False,
    ),
)
