"""A PostgreSQL that accepts connections and says nothing, as one that is stopped."""

import socket
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from app.errors import SetupError
from app.ledger import database
from app.ledger.database import Database


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(database.POSTGRESQL, "connect_args", {"timeout": 0.05})
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(SetupError, match=r"jobs\.database: .*cannot be opened"):
        Database(f"postgresql+pg8000://litmus:secret@127.0.0.1:{silent.getsockname()[1]}/litmus")


def test_its_silence_in_a_transaction_is_an_error_of_the_database(tmp_path: Path) -> None:
    made = Database(f"sqlite:///{tmp_path}/jobs.db")
    with pytest.raises(DBAPIError), made.transaction():
        raise TimeoutError("timed out")  # as pg8000 has it from the socket


def test_a_connection_has_the_time_limits() -> None:
    assert database.POSTGRESQL["connect_args"] == {"timeout": database.SILENCE_S}
    assert database.STATEMENT_S < database.SILENCE_S, "the server ends a slow statement before this side leaves it alone"
