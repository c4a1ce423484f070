import sys
from io import StringIO

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.db.utils import NotSupportedError, OperationalError
from django.test import override_settings

from continuum import checks
from continuum.core.definitions import ActivityDefinition, Registry
from continuum.core.options import ActivityOptions
from continuum.discovery import autodiscover


def ids(found):
    return [message.id for message in found]


@pytest.fixture(autouse=True)
def only_the_projects_workflows(monkeypatch):
    """Leave out what other tests have defined on the way, some of it to show what is not to be done."""
    every = checks.registry.workflows
    monkeypatch.setattr(
        checks.registry, "workflows", lambda: [each for each in every() if each.name.startswith("tests.app.")]
    )


@pytest.fixture
def project_module(tmp_path, monkeypatch):
    """Write a module that the project could have: ``project_module("flows", "1 / 0")``."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def other_database(monkeypatch):
    """Add the alias "other" to DATABASES: ``other_database(ENGINE=...)``."""

    def add(**database):
        monkeypatch.setitem(connections.settings, "other", connections["default"].settings_dict | database)

    yield add
    if hasattr(connections._connections, "other"):
        connections["other"].close()
        del connections["other"]


# Settings


def test_a_sound_project_passes():
    assert checks.check_settings() == checks.check_aliases() == checks.check_workflow_modules() == []


@override_settings(CONTINUUM={"CONCURENCY": 5})
def test_unknown_key():
    (error,) = checks.check_settings()
    assert error.id == "continuum.E001"
    assert error.hint == "Did you mean 'CONCURRENCY'?"


@override_settings(CONTINUUM={"CONCURRENCY": "five"})
def test_wrong_value():
    assert ids(checks.check_settings()) == ["continuum.E002"]


@override_settings(CONTINUUM={"DATABASE": 5, "LISTEN_DATABASE": 5, "WORKFLOW_MODULES": 5})
def test_wrong_value_is_told_by_one_check_only():
    assert ids(checks.check_settings()) == ["continuum.E002"] * 3
    assert checks.check_aliases() == []
    assert checks.check_servers(databases=["default"]) == []
    assert checks.check_workflow_modules() == []


@override_settings(CONTINUUM={"NOPE": 1})
def test_manage_py_check_runs_them():
    with pytest.raises(SystemCheckError, match=r"continuum\.E001"):
        call_command("check", stdout=StringIO(), stderr=StringIO())


# Aliases


@pytest.mark.parametrize("key", ["DATABASE", "LISTEN_DATABASE"])
def test_missing_alias(key):
    with override_settings(CONTINUUM={key: "durable"}):
        (error,) = checks.check_aliases()
    assert error.id == "continuum.E003"
    assert f'CONTINUUM["{key}"]' in error.msg
    assert "'durable'" in error.msg
    assert "'default'" in error.hint


@pytest.mark.parametrize("key", ["DATABASE", "LISTEN_DATABASE"])
def test_alias_that_is_not_postgresql(key, other_database):
    other_database(ENGINE="django.db.backends.sqlite3", NAME=":memory:")
    with override_settings(CONTINUUM={key: "other"}):
        (error,) = checks.check_aliases()
    assert error.id == "continuum.E004"
    assert "django.db.backends.sqlite3" in error.msg


@override_settings(CONTINUUM={"DATABASE": "other"})
def test_aliases_are_checked_without_connecting(other_database):
    other_database(HOST="/nowhere")
    assert checks.check_aliases() == []


# Servers


@pytest.fixture
def server_says(monkeypatch):
    """Make the server of the default alias report a version, or raise an error."""

    def say(answer):
        def pg_version(connection):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(type(connections["default"]), "pg_version", property(pg_version))
        monkeypatch.setattr(checks, "_database", lambda alias: [])  # what else the server says is for other tests

    return say


@pytest.mark.django_db
def test_this_server_is_new_enough():
    assert checks.check_servers(databases=["default"]) == []


@pytest.mark.parametrize(("version", "expected"), [(130_014, ["continuum.E005"]), (140_000, []), (180_002, [])])
def test_server_version(version, expected, server_says):
    server_says(version)
    assert ids(checks.check_servers(databases=["default"])) == expected


def test_server_too_old_for_django_itself(server_says):
    server_says(NotSupportedError("PostgreSQL 15 or later is required (found 14.2)."))
    (error,) = checks.check_servers(databases=["default"])
    assert error.id == "continuum.E005"
    assert "found 14.2" in error.msg


def test_server_out_of_reach(server_says):
    server_says(OperationalError("connection refused"))
    (error,) = checks.check_servers(databases=["default"])
    assert error.id == "continuum.E006"
    assert "connection refused" in error.msg


@pytest.mark.parametrize("databases", [None, [], ["another"]])
def test_servers_nobody_asked_about_are_left_alone(databases, server_says):
    server_says(AssertionError("connected"))
    assert checks.check_servers(databases=databases) == []


@pytest.mark.django_db(transaction=True)
def test_a_server_that_is_read_only_is_reported_as_that(monkeypatch):
    settings = connections["default"].settings_dict
    monkeypatch.setitem(settings, "OPTIONS", settings["OPTIONS"] | {"options": "-c default_transaction_read_only=on"})
    connections["default"].close()
    try:
        assert "continuum.E011" in (found := ids(checks.check_servers(databases=["default"])))
        assert "continuum.E006" not in found
    finally:
        connections["default"].close()


def test_plain_check_does_not_connect(server_says):
    server_says(AssertionError("connected"))
    call_command("check", stdout=StringIO())


def test_check_with_a_database_looks_at_its_server(server_says):
    server_says(130_014)
    with pytest.raises(SystemCheckError, match=r"continuum\.E005"):
        call_command("check", databases=["default"], stdout=StringIO(), stderr=StringIO())


# Workflow modules


@override_settings(CONTINUUM={"WORKFLOW_MODULES": ["shop.flows"]})
def test_workflow_module_that_does_not_exist():
    (error,) = checks.check_workflow_modules()
    assert error.id == "continuum.E007"
    assert error.msg == "CONTINUUM[\"WORKFLOW_MODULES\"] names 'shop.flows', but there is no such module."


def test_workflow_module_that_fails_is_told_in_a_sentence(project_module):
    project_module("broken_flows", "raise ZeroDivisionError('division by zero')")
    with override_settings(CONTINUUM={"WORKFLOW_MODULES": ["broken_flows"]}):
        (error,) = checks.check_workflow_modules()
    assert "importing it failed: ZeroDivisionError: division by zero" in error.msg
    assert "\n" not in error.msg


def test_workflow_module_whose_own_import_is_missing_is_not_called_missing(project_module):
    project_module("flows_needing_more", "import no_such_library")
    with override_settings(CONTINUUM={"WORKFLOW_MODULES": ["flows_needing_more"]}):
        (error,) = checks.check_workflow_modules()
    assert "no_such_library" in error.msg
    assert "there is no such module" not in error.msg


# Discovery


def test_the_workflows_module_of_an_installed_app_is_loaded():
    assert "tests.app.workflows" in sys.modules


def test_listed_modules_are_loaded_once(project_module):
    project_module("counted_flows", "import sys; sys.flows_loaded = getattr(sys, 'flows_loaded', 0) + 1")
    with override_settings(CONTINUUM={"WORKFLOW_MODULES": ["counted_flows"]}):
        autodiscover()
        autodiscover()
    assert sys.__dict__.pop("flows_loaded") == 1


def test_discovery_does_not_pass_over_a_broken_module(project_module):
    project_module("broken_flows", "1 / 0")
    with override_settings(CONTINUUM={"WORKFLOW_MODULES": ["broken_flows"]}):
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured, match="ZeroDivisionError"):
                autodiscover()


@pytest.mark.parametrize("modules", [["no_such_flows"], 5])
def test_a_wrong_setting_does_not_keep_the_project_from_loading(modules):
    with override_settings(CONTINUUM={"WORKFLOW_MODULES": modules}):
        apps.get_app_config("continuum").ready()


def test_an_app_whose_workflows_do_not_load_keeps_the_project_from_loading(monkeypatch):
    def broken(name):
        raise ImproperlyConfigured("the app is broken")

    monkeypatch.setattr("continuum.discovery.autodiscover_modules", broken)
    with pytest.raises(ImproperlyConfigured, match="the app is broken"):
        apps.get_app_config("continuum").ready()


def test_a_module_that_was_mended_is_found(project_module, tmp_path):
    project_module("mended_flows", "1 / 0")
    with override_settings(CONTINUUM={"WORKFLOW_MODULES": ["mended_flows"]}):
        with pytest.raises(ImproperlyConfigured):
            autodiscover()
        (tmp_path / "mended_flows.py").write_text("answer = 42")
        autodiscover()
    assert sys.modules["mended_flows"].answer == 42


# Transactional activities


@pytest.fixture
def transactional_activities(monkeypatch):
    """Registered activities: one transactional in each of the databases given."""

    def declare(*aliases):
        known = Registry()
        monkeypatch.setattr(checks, "registry", known)
        for number, alias in enumerate(aliases):
            options = ActivityOptions(transactional=alias)
            known.add_activity(ActivityDefinition(written, name=f"written_{number}", options=options))

    return declare


def written():
    pass


def test_transactional_activities_of_another_database_are_refused_each_by_name_and_place(transactional_activities):
    transactional_activities("reports", True, False, "default", "archive")
    found = checks.check_transactional()
    assert ids(found) == ["continuum.E008"] * 2
    assert "written_0" in found[0].msg
    assert "'reports'" in found[0].msg
    assert f"{__file__}:{written.__code__.co_firstlineno}" in found[0].msg
    assert "written_4" in found[1].msg


@override_settings(CONTINUUM={"DATABASE": "reports"})
def test_the_database_of_the_runs_is_the_one_that_counts(transactional_activities):
    transactional_activities("reports", True, "default")
    assert ["written_2" in error.msg for error in checks.check_transactional()] == [True]


@override_settings(CONTINUUM={"DATABASE": 5})
def test_transactional_activities_are_not_judged_by_a_wrong_setting(transactional_activities):
    transactional_activities("reports")
    assert checks.check_transactional() == []
