"""A revision follows the weights and nothing else; a fingerprint follows everything an answer hangs on."""

import tomllib
from pathlib import Path

import pytest

from app.models.revision import EDGE, VERSION, fingerprint_of, revision_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(4 * EDGE))
    return tmp_path


def change(folder: Path, name: str, place: int, data: bytes) -> None:
    with (folder / name).open("r+b") as file:
        file.seek(place)
        file.write(data)


@pytest.mark.parametrize(("name", "place"), [("model.safetensors", 0), ("model.safetensors", 4 * EDGE - 1), ("config.json", 1)])
def test_other_weights_are_another_revision(folder: Path, name: str, place: int) -> None:
    before = revision_of(str(folder), None)
    assert revision_of(str(folder), None) == before
    change(folder, name, place, b" ")
    assert revision_of(str(folder), None) != before


def test_size_and_number_of_the_files_count(folder: Path) -> None:
    seen = {revision_of(str(folder), None)}
    change(folder, "model.safetensors", 4 * EDGE, b"\0")
    seen.add(revision_of(str(folder), None))
    (folder / "more.safetensors").write_bytes(b"")
    seen.add(revision_of(str(folder), None))
    assert len(seen) == 3


def test_what_is_no_weight_does_not_count_and_a_hubs_commit_does_all(folder: Path) -> None:
    before = revision_of(str(folder), None)
    (folder / "README.md").write_text("changed")
    assert revision_of(str(folder), None) == before
    assert revision_of("owner/name", "c0ffee") == "c0ffee"


def test_a_fingerprint_is_that_of_its_parts_in_their_places() -> None:
    assert fingerprint_of("a", "b") == fingerprint_of("a", "b")
    assert len({fingerprint_of("a", "b"), fingerprint_of("b", "a"), fingerprint_of("ab", ""), fingerprint_of("a", "b", "")}) == 4
    assert len(fingerprint_of("a")) == len("fp_") + 12


def test_the_version_is_that_of_the_project() -> None:
    with (Path(__file__).parents[3] / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION
