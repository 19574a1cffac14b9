import pytest
from pydantic import ValidationError

from app.errors import SetupError
from app.settings import JobSettings, is_local, read

POSTGRES = "postgresql://litmus:pw@db/litmus"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"broker": "redis://:pw@127.0.0.1:6379"},
        {"broker": "rediss://:pw@localhost:6379", "server": "http://[::1]:8000"},
        {"broker": "redis://:pw@cache:6379", "server": "http://10.0.0.7:8000", "database": POSTGRES},
    ],
)
def test_what_fits_together(settings):
    JobSettings(**settings)


@pytest.mark.parametrize(
    ("name", "url"), [("broker", "redis://:pw@cache:6379"), ("broker", "redis://10.0.0.7"), ("server", "http://litmus.example.org")]
)
def test_a_sqlite_file_is_not_shared_between_machines(name, url):
    with pytest.raises(SetupError, match=rf"jobs\.{name} is on .* set jobs\.database") as refused:
        read([f"--jobs.{name}", url])
    assert ":pw@" not in str(refused.value)


def test_the_table_is_in_the_folder_or_where_the_setting_says(tmp_path):
    assert JobSettings(folder=str(tmp_path)).database_url == f"sqlite:///{tmp_path}/jobs.db"
    assert JobSettings(database=POSTGRES).database_url == "postgresql+pg8000://litmus:pw@db/litmus"


@pytest.mark.parametrize("field", [{"broker": "amqp://x"}, {"database": "mysql://x"}, {"secret": "short"}, {"lease_s": 0.5}])
def test_values_out_of_bounds_are_refused(field):
    with pytest.raises(ValidationError, match=next(iter(field))):
        JobSettings(**field)


def test_passwords_are_not_shown():
    shown = repr(JobSettings(database=POSTGRES, broker="redis://:hidden@127.0.0.1", secret="x" * 32))
    assert ":pw@" not in shown and "hidden" not in shown and "x" * 32 not in shown


@pytest.mark.parametrize(("host", "local"), [("localhost", True), ("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("db", False)])
def test_which_hosts_are_this_machine(host, local):
    assert is_local(host) is local
