"""Copies in memory: made once, found again, made anew when the files change, refused with the numbers, and never half."""

import json
import logging
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinymodels import ROOT

from app.errors import SetupError
from app.models import __main__ as command
from app.models import staging
from app.models.files import files_to_load, read_ahead, weight_files
from app.models.loading import create_engine
from app.models.source import source_of
from app.models.stages import Stages
from app.models.staging import home, stage, staged, unstage
from app.settings import ModelSettings

usage = namedtuple("usage", "total used free")


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(staging, "ROOT", tmp_path / "shm")
    return tmp_path / "shm"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "config.json", tmp_path / "model.safetensors"]
    made[0].write_text("{}")
    made[1].write_bytes(bytes(range(256)) * 100)
    return made


def test_a_copy_is_made_once(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.models.progress")
    first = stage("model", files)
    assert [(first / file.name).read_bytes() for file in files] == [file.read_bytes() for file in files]
    assert "staging model into memory: 0.0 of 0.0 MB (100%)" in caplog.text
    caplog.clear()
    assert stage("model", files) == first and not caplog.text


def test_files_that_changed_are_copied_anew(files: list[Path]) -> None:
    first = stage("model", files)
    files[1].write_bytes(b"other")
    second = stage("model", files)
    assert second != first and (second / files[1].name).read_bytes() == b"other"


def test_a_copy_that_lacks_something_is_made_anew(files: list[Path]) -> None:
    first = stage("model", files)
    (first / files[1].name).write_bytes(b"cut")
    assert stage("model", files) == first and (first / files[1].name).read_bytes() == files[1].read_bytes()


def test_what_a_killed_process_left_is_removed(files: list[Path]) -> None:
    """A copy is renamed to its place when it is whole: a killed process leaves a folder that nobody reads."""
    first = stage("model", files)
    left = first.rename(first.with_suffix(".part"))
    assert staged() == []
    assert stage("model", files) == first and not left.exists()


def test_a_process_killed_half_way_leaves_neither_a_lock_nor_half_a_copy(files: list[Path], memory: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from app.models import staging\n"
        f"staging.ROOT = Path({str(memory)!r})\n"
        "staging.Transfer.advance = lambda self, count: os._exit(9)\n"
        "staging.stage('model', [Path(each) for each in sys.argv[1:]])"
    )
    assert subprocess.run([sys.executable, "-c", script, *map(str, files)], cwd=ROOT).returncode == 9
    assert len(list(home().glob("*.part"))) == 1
    folder = stage("model", files)
    assert (folder / files[1].name).read_bytes() == files[1].read_bytes() and not list(home().glob("*.part"))


def test_two_at_once_make_one_copy(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.models.progress")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(stage("model", files))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert sum("(100%)" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(("memory_free", "tmpfs_free", "where"), [(1000, 10**9, "the free memory"), (10**9, 1000, "the free space of")])
def test_a_copy_that_does_not_fit_is_refused_with_the_numbers(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, memory_free: int, tmpfs_free: int, where: str
) -> None:
    monkeypatch.setattr(staging, "device_memory", lambda device, weights: memory_free)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: usage(tmpfs_free, 0, tmpfs_free))
    with pytest.raises(SetupError, match=rf"model\.cache: a copy of model takes 0\.00 GiB, more than {where}.* set model\.cache to disk"):
        stage("model", files)
    assert staged() == []


def test_another_users_folder_is_not_used(files: list[Path]) -> None:
    home().mkdir(parents=True)
    home().chmod(0o777)
    with pytest.raises(SetupError, match="not a folder that this user alone can write to"):
        stage("model", files)


def test_copies_are_listed_and_removed(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    stage("org/model", files)
    (copy,) = staged()
    assert (copy.name, copy.size) == ("org/model", sum(file.stat().st_size for file in files))
    assert command.main(["rm", "org/model"]) == 0 and "was removed from memory" in capsys.readouterr().out
    assert staged() == [] and unstage("org/model") == 0


def test_a_model_loads_from_its_copy_and_keeps_its_revision(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.models.loading")
    plain, copied = (create_engine(ModelSettings(path=str(tiny_folder), slots=2, cache=cache))[1] for cache in ("disk", "ram"))
    assert plain.revision == copied.revision and plain.fingerprint == copied.fingerprint
    (copy,) = staged()
    assert {file.name for file in copy.folder.iterdir()} >= {"config.json", "model.safetensors"}
    last = caplog.records[-1].getMessage()
    assert all(f"{stage_name} " in last for stage_name in ("open", "stage", "read", "convert", "prove", "warm-up")) and "MB/s" in last
    (copy.folder / "model.safetensors").write_bytes(b"")  # whoever loads now from it would fail
    assert json.loads((copy.folder / "litmus.json").read_text())["name"] == str(tiny_folder)


def test_files_are_read_ahead_whole(tiny_folder: Path) -> None:
    source = source_of(str(tiny_folder))
    weights = weight_files(source)
    assert [file.name for file in weights] == ["model.safetensors"]
    assert read_ahead(weights) == weights[0].stat().st_size
    assert {file.name for file in files_to_load(source)} >= {"model.safetensors", "config.json"}


def test_stages_add_up() -> None:
    stages = Stages()
    stages.add("read", 2.0)
    stages.add("convert", 1.0)
    stages.add("read", 2.0)
    stages.read_bytes = 8_000_000
    assert str(stages) == "5.00 s: read 4.00 (8 MB at 2 MB/s), convert 1.00"
