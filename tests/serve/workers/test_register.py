"""The file of the adapters: what is damaged is neither served nor lost."""

import json
from pathlib import Path

import pytest

from serve.workers.register import Entry, Register

GOOD = {"path": "/tuned", "model": "base"}


def test_a_damaged_entry_hides_no_other_one_and_stays_in_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "adapters.json"
    file.write_text(json.dumps({"good": GOOD, "bad": {"path": 5}}))
    register = Register(file)
    assert register.read() == {"good": Entry(**GOOD)} and "the adapter 'bad' cannot be read" in caplog.text
    register.write("new", Entry(**GOOD))
    assert json.loads(file.read_text()) == {"good": GOOD, "bad": {"path": 5}, "new": GOOD}
    register.write("bad", None)
    assert json.loads(file.read_text()) == {"good": GOOD, "new": GOOD}


@pytest.mark.parametrize("damaged", [b'{"good": {"path": "/tuned', b"[]", b"\xff", b"", b"[" * 100_000])
def test_a_file_that_is_damaged_as_a_whole_is_moved_aside(damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "adapters.json"
    file.write_bytes(damaged)
    register = Register(file)
    assert register.read() == {}
    register.write("new", Entry(**GOOD))
    (aside,) = tmp_path.glob("adapters.json.damaged-*")
    assert aside.read_bytes() == damaged and aside.name in caplog.text and register.read() == {"new": Entry(**GOOD)}
