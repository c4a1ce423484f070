from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from continuum.conf import OPTIONS, Settings, settings

DEFAULTS = {
    "DATABASE": "default",
    "LISTEN_DATABASE": None,
    "WORKFLOW_MODULES": (),
    "LEASE_TTL": 30,
    "POLL_INTERVAL": 1,
    "CONCURRENCY": 400,
    "LIVE_RUNS": 10_000,
    "ACTIVITY_THREADS": 16,
    "PROCESSES": None,
    "QUEUES": {},
    "DRAIN_TIMEOUT": 10,
    "DEADLOCK_TIMEOUT": 2,
    "MAX_RECOVERIES": 10,
    "MAX_VALUE_BYTES": 2 * 1024 * 1024,
    "VERSION_POLICY": "prove",
    "TRUSTED_MODULES": (),
    "REDACT": None,
    "PARANOID": False,
    "RUNTIME_GUARDS": True,
}


def messages(given):
    with override_settings(CONTINUUM=given):
        return [f"{problem.message} {problem.hint}" for problem in settings.problems()]


@pytest.mark.parametrize(("key", "value"), DEFAULTS.items())
def test_default(key, value):
    with override_settings(CONTINUUM={}):
        assert getattr(settings, key) == value


def test_every_key_has_a_default_here_and_a_declared_type():
    assert DEFAULTS.keys() == OPTIONS.keys() == Settings.__annotations__.keys()


@pytest.mark.parametrize("key", OPTIONS)
def test_default_is_a_value_one_could_have_given(key):
    default = OPTIONS[key].default
    assert OPTIONS[key].clean(default) == default


def test_a_project_needs_no_continuum_setting(settings):
    from continuum.conf import settings as continuum_settings

    del settings.CONTINUUM
    assert continuum_settings.DATABASE == "default"
    assert continuum_settings.problems() == []


def test_override_settings_takes_effect_and_is_undone():
    with override_settings(CONTINUUM={"LEASE_TTL": 5}):
        assert settings.LEASE_TTL == 5.0
        with override_settings(CONTINUUM={"LEASE_TTL": 7}):
            assert settings.LEASE_TTL == 7.0
        assert settings.LEASE_TTL == 5.0
    assert settings.LEASE_TTL == 30.0


def test_a_value_is_cleaned_once_and_then_kept():
    with override_settings(CONTINUUM={"QUEUES": {"mail": {"concurrency": 2}}}):
        assert settings.QUEUES is settings.QUEUES


def test_durations_may_be_timedeltas():
    with override_settings(CONTINUUM={"LEASE_TTL": timedelta(minutes=1)}):
        assert settings.LEASE_TTL == 60.0


def test_a_callable_may_be_named_by_its_path():
    with override_settings(CONTINUUM={"REDACT": "tests.test_conf.messages"}):
        assert settings.REDACT is messages


def test_queue_limits_are_cleaned():
    with override_settings(CONTINUUM={"QUEUES": {"mail": {"cluster_concurrency": 3, "rate": [10, 60]}}}):
        assert settings.QUEUES == {"mail": {"cluster_concurrency": 3, "rate": (10, 60.0)}}


def test_there_is_no_attribute_for_what_is_no_setting():
    with pytest.raises(AttributeError, match="LEASE_TLL"):
        settings.LEASE_TLL  # noqa: B018


def test_reading_a_wrong_value_raises_at_once():
    with override_settings(CONTINUUM={"LEASE_TTL": "30"}), pytest.raises(ImproperlyConfigured, match="LEASE_TTL"):
        settings.LEASE_TTL  # noqa: B018


def test_unknown_key_is_a_problem_with_a_suggestion():
    (message,) = messages({"LEASE_TLL": 30})
    assert "unknown key 'LEASE_TLL'" in message
    assert "Did you mean 'LEASE_TTL'?" in message


def test_key_in_the_wrong_case_is_recognised():
    (message,) = messages({"database": "default"})
    assert "Did you mean 'DATABASE'?" in message


def test_unknown_key_that_resembles_nothing_gets_the_list():
    (message,) = messages({"QXZ": 1})
    assert "The keys are DATABASE," in message


def test_setting_that_is_no_dict_is_a_problem():
    (message,) = messages(["DATABASE"])
    assert "must be a dict, not list" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATABASE", None),
        ("DATABASE", ""),
        ("LISTEN_DATABASE", 1),
        ("WORKFLOW_MODULES", "shop.flows"),
        ("WORKFLOW_MODULES", [1]),
        ("LEASE_TTL", 0),
        ("LEASE_TTL", True),
        ("LEASE_TTL", "30"),
        ("LEASE_TTL", float("nan")),
        ("LEASE_TTL", float("inf")),
        ("LEASE_TTL", timedelta(0)),
        ("POLL_INTERVAL", -1),
        ("CONCURRENCY", 0),
        ("CONCURRENCY", 2.5),
        ("CONCURRENCY", True),
        ("LIVE_RUNS", "many"),
        ("ACTIVITY_THREADS", 0),
        ("PROCESSES", 0),
        ("PROCESSES", "2"),
        ("DRAIN_TIMEOUT", -1),
        ("DEADLOCK_TIMEOUT", 0),
        ("MAX_RECOVERIES", 0),
        ("MAX_VALUE_BYTES", None),
        ("VERSION_POLICY", "hope"),
        ("VERSION_POLICY", []),
        ("TRUSTED_MODULES", "os"),
        ("REDACT", 5),
        ("REDACT", "no.such.function"),
        ("PARANOID", 1),
        ("QUEUES", ["mail"]),
        ("QUEUES", {"": {}}),
        ("QUEUES", {"a,b": {}}),
        ("QUEUES", {"mail": 5}),
        ("QUEUES", {"mail": {"speed": 5}}),
        ("QUEUES", {"mail": {"concurrency": 0}}),
        ("QUEUES", {"mail": {"rate": 5}}),
        ("QUEUES", {"mail": {"rate": (5, 0)}}),
    ],
)
def test_wrong_value_is_a_problem_that_names_the_key_and_the_value(key, value):
    (message,) = messages({key: value})
    assert f'CONTINUUM["{key}"]' in message
    assert repr(value) in message


def test_zero_is_a_fine_time_to_drain():
    assert messages({"DRAIN_TIMEOUT": 0}) == []


def test_polling_less_often_than_the_lease_lasts_is_a_problem():
    (message,) = messages({"LEASE_TTL": 5, "POLL_INTERVAL": 5})
    assert "must be shorter" in message


def test_all_problems_are_told_at_once():
    assert len(messages({"CONCURRENCY": 0, "PARANOID": "yes", "NOPE": 1})) == 3
