"""The statements of the hot path, as they are sent."""

from importlib.resources import files

import pytest

from continuum.worker import sql

NAMES = sorted(
    path.name.removesuffix(".sql") for path in files(sql.__package__).iterdir() if path.name.endswith(".sql")
)

#: Of longer ones psycopg works out anew, at each execution, where the parameters stand.
CACHED = 4096


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_out_is_comments_only(name):
    written = files(sql.__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8").splitlines()
    sent = sql.load(name).splitlines()
    left_out = [line for line in written if line not in sent]
    assert [line for line in written if line not in left_out] == sent
    assert all(line.lstrip().startswith("--") for line in left_out)
    assert not any(line.lstrip().startswith("--") for line in sent)


@pytest.mark.parametrize("name", ["journal", "claim_due", "claim_mail", "claim_parked", "claim_suspects"])
def test_statements_that_are_sent_all_the_time_are_short_enough_to_be_known_again(name):
    assert len(sql.load(name).encode()) <= CACHED
