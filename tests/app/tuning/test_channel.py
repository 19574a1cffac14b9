"""What a run tells is one line of UTF-8 for each message, whatever a key of a file was."""

import json
import sys
from pathlib import Path
from typing import Any

from app.tuning.channel import Channel


def test_half_of_a_character_is_replaced_and_all_others_are_kept(tmp_path: Path, monkeypatch: Any) -> None:
    told = tmp_path / "told"
    with told.open("w") as out, (tmp_path / "said").open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        Channel()("event", {"message": "'\ud800key\u2028\U0001f600' is none of text\n"})
        monkeypatch.undo()
    assert [json.loads(line) for line in told.read_bytes().split(b"\n")[:-1]] == [
        {"kind": "event", "message": "'?key\u2028\U0001f600' is none of text\n"}
    ]
