"""What the command line of a run takes."""

from pathlib import Path
from typing import Any

import pytest

from app.tuning.__main__ import parse_args


def test_the_help_says_what_it_is(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help"])
    assert ended.value.code == 0 and "one fine-tuning run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [([], "required: command, folder"), (["tune", "/nope"], "invalid choice: 'tune'"), (["train", "/nope"], "/nope is no folder of a run")],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(arguments: list[str], reason: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_args(arguments)
    assert ended.value.code == 2 and reason in capsys.readouterr().err


def test_a_folder_with_a_run_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    args = parse_args(["examine", str(tmp_path)])
    assert (args.command, args.folder) == ("examine", tmp_path)
