"""The file of flags: whole lines whoever writes at the same time, whatever the disk does; and no text unless it was ticked."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import SetupError
from ui.flags.file import OLDER_FILES, FlagFile, NotKept, flag_file
from ui.flags.flag import Flag, hash_of

ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from pathlib import Path
from ui.flags.file import FlagFile
from ui.flags.flag import Flag, hash_of
path, name, count, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
file = FlagFile(path, limit)
for number in range(count):
    file.add(Flag(about="score", label="human", hash=hash_of(""), model=f"{name}/{number}", reason=name * 400))
"""


def flag(**changes: object) -> Flag:
    return Flag.model_validate({"about": "score", "label": "machine", "hash": hash_of("a text"), "model": "m", **changes})


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_a_hash_and_no_text_unless_it_was_ticked(tmp_path: Path):
    file = FlagFile(tmp_path / "new" / "flags.jsonl")
    file.add(flag(score=1.5, threshold=2.0, reason="I wrote it"))
    file.add(flag(text="a text"))
    first, second = lines(file.path)
    assert (first["hash"], first["score"], first["reason"], "text" in first) == (hash_of("a text"), 1.5, "I wrote it", False)
    assert second["text"] == "a text" and str(first["time"]).endswith("+00:00")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_thumb_may_be_taken_back_under_its_own_id(tmp_path: Path):
    file = FlagFile(tmp_path / "flags.jsonl")
    for label in ("good", "withdrawn"):
        file.add(flag(about="chat", label=label, id="0123456789abcdef" * 2))
    assert [(line["label"], line["id"]) for line in lines(file.path)] == [
        ("good", "0123456789abcdef" * 2),
        ("withdrawn", "0123456789abcdef" * 2),
    ]
    with pytest.raises(ValueError, match="id"):
        flag(id="../x")


def test_a_text_that_is_not_the_scored_one_is_refused():
    with pytest.raises(ValueError, match="the text has changed since"):
        flag(text="another text")


def test_many_processes_write_whole_lines_and_turn_the_file_over_once(tmp_path: Path):
    path, count = tmp_path / "flags.jsonl", 60
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name, str(count), "60000"], cwd=ROOT) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = [path, *sorted(tmp_path.glob("flags.jsonl.[0-9]"))]
    written = [line["model"] for file in files for line in lines(file)]
    assert sorted(written) == sorted(f"{name}/{number}" for name in "abc" for number in range(count))
    assert len(files) > 1 and all(file.stat().st_size <= 60_000 for file in files)


def test_the_oldest_file_is_dropped(tmp_path: Path):
    file = FlagFile(tmp_path / "flags.jsonl", max_bytes=300)
    for number in range(20):
        file.add(flag(model=str(number)))
    kept = sorted(path.name for path in tmp_path.glob("flags.jsonl*") if path.suffix != ".lock")
    assert kept == ["flags.jsonl", *(f"flags.jsonl.{number}" for number in range(1, OLDER_FILES + 1))]
    assert lines(file.path)[-1]["model"] == "19" and all(path.stat().st_size <= 300 for path in tmp_path.glob("flags.jsonl*"))


def test_a_new_file_that_cannot_be_opened_costs_the_line_and_no_file_is_closed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = FlagFile(tmp_path / "flags.jsonl", max_bytes=300)
    file.add(flag())
    opened: list[int] = []

    def open_once() -> int:
        if opened:
            raise OSError(errno.EMFILE, "Too many open files")
        opened.append(os.open(file.path, os.O_WRONLY))
        return opened[0]

    monkeypatch.setattr(file, "_open", open_once)
    with pytest.raises(NotKept, match="Too many open files"):
        file.add(flag(reason="x" * 200))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_a_full_disk_costs_the_line_and_leaves_no_part_of_it(tmp_path: Path):
    """A limit on the size of files does what a full disk does: a write takes a part of the line, the next one fails."""
    file = FlagFile(tmp_path / "flags.jsonl")
    file.add(flag())
    before, limits = file.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
        with pytest.raises(NotKept, match="This could not be kept: File too large"):
            file.add(flag(reason="x" * 400))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.path.read_bytes() == before
    file.add(flag())
    assert len(lines(file.path)) == 2


def test_the_setting_is_off_or_names_a_file_that_can_be_written(tmp_path: Path):
    assert flag_file(None) is None
    with pytest.raises(SetupError, match=r"ui\.flags: .* cannot be written"):
        flag_file(str(tmp_path))
