"""States of files, checked by mincore on this machine's own disk and tmpfs."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.cache import storage
from loadtest.cache.storage import PAGE_BYTES, CannotMeasure, Pages

ROOT = Path(__file__).parents[3]
SHM = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path):
    """Three files on a disk, one of them empty; skipped on a file system that does not drop pages when asked."""
    (tmp_path / "weights").write_bytes(os.urandom(40 * PAGE_BYTES + 1))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config").write_bytes(b"x" * 10)
    (tmp_path / "empty").touch()
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * PAGE_BYTES)
    with probe.open("rb") as file:  # by itself, so that no fault of what is tested becomes a skip
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dropped = storage.count_pages([probe]).resident == 0
    probe.unlink()
    if not dropped:
        pytest.skip(f"posix_fadvise drops nothing on {storage.file_system_of(tmp_path)}")
    storage.drop_from_cache(storage.files_of(tmp_path))
    return tmp_path


@pytest.fixture
def tmpfs():
    if not SHM.is_dir() or storage.file_system_of(SHM) != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    return SHM


def test_cold_is_cold_and_warm_is_warm(folder):
    paths = storage.files_of(folder)
    assert [path.name for path in paths] == ["config", "weights"], "an empty file has no page to be in a state"
    assert storage.count_pages(paths) == Pages(0, 42)
    assert storage.read_all(paths) == 40 * PAGE_BYTES + 11
    assert storage.count_pages(paths).share == 1.0
    storage.drop_from_cache(paths)
    assert storage.count_pages(paths).share == 0.0


def test_one_resident_page_is_counted(folder):
    file = folder / "weights"
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(opened.fileno(), 1, 7 * PAGE_BYTES)
    found = storage.count_pages([file])
    assert 1 <= found.resident < found.total and found.bytes == found.resident * PAGE_BYTES


def test_newly_written_files_become_cold(folder):
    (folder / "weights").write_bytes(os.urandom(20 * PAGE_BYTES))
    storage.drop_from_cache(storage.files_of(folder))
    assert storage.count_pages(storage.files_of(folder)).resident == 0


def test_mapped_pages_stay_resident(folder):
    with (folder / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::PAGE_BYTES]) >= 0
        storage.drop_from_cache(storage.files_of(folder))
        assert storage.count_pages(storage.files_of(folder)).resident > 0


def test_links_are_followed(folder, tmp_path_factory):
    snapshot = tmp_path_factory.mktemp("snapshot")
    (snapshot / "model").symlink_to(folder / "weights")
    assert storage.files_of(snapshot) == [folder / "weights"]


def test_a_copy_in_memory_stays_resident(folder, tmpfs):
    target = tmpfs / f"litmus-test-{os.getpid()}"
    try:
        copy = storage.copy_to_memory(folder, tmpfs, target)
        storage.drop_from_cache(storage.files_of(copy))
        assert storage.count_pages(storage.files_of(copy)).share == 1.0
        assert (copy / "weights").read_bytes() == (folder / "weights").read_bytes()
        with pytest.raises(CannotMeasure, match="always in memory"):
            storage.check_disk(copy)
    finally:
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        target.rmdir()
    storage.check_disk(folder)


def test_no_tmpfs_and_no_room(folder, tmpfs, monkeypatch):
    with pytest.raises(CannotMeasure, match="no tmpfs"):
        storage.copy_to_memory(folder, folder, folder / "copy")
    monkeypatch.setattr(storage, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(CannotMeasure, match="room for 0.0 GB"):
        storage.copy_to_memory(folder, tmpfs, tmpfs / "litmus-test-none")
    assert not (tmpfs / "litmus-test-none").exists()


def test_the_reader_waits_for_a_line_and_reads_everything(folder):
    command = [sys.executable, "-m", "loadtest.cache.storage", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline()) == {"ready": True}
        assert storage.count_pages(storage.files_of(folder)).resident == 0, "it has read nothing yet"
        output, _ = process.communicate(b"\n")
    found = json.loads(output)
    assert found["read_bytes"] == 40 * PAGE_BYTES + 11 and found["load_s"] > 0
    assert storage.count_pages(storage.files_of(folder)).share == 1.0
    assert subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True).returncode == 2
