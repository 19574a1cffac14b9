"""The revision depends on the weights alone; the fingerprint on everything that determines an answer."""

import tomllib
from pathlib import Path

import pytest

from app.models.revision import EDGE_BYTES, VERSION, fingerprint_of, revision_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(4 * EDGE_BYTES))
    return tmp_path


def overwrite(folder: Path, name: str, offset: int, data: bytes) -> None:
    with (folder / name).open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(("name", "offset"), [("model.safetensors", 0), ("model.safetensors", 4 * EDGE_BYTES - 1), ("config.json", 1)])
def test_changed_weights_change_the_revision(folder: Path, name: str, offset: int) -> None:
    before = revision_of(str(folder), None)
    assert revision_of(str(folder), None) == before
    overwrite(folder, name, offset, b" ")
    assert revision_of(str(folder), None) != before


def test_size_and_number_of_weight_files_change_the_revision(folder: Path) -> None:
    revisions = {revision_of(str(folder), None)}
    overwrite(folder, "model.safetensors", 4 * EDGE_BYTES, b"\0")
    revisions.add(revision_of(str(folder), None))
    (folder / "more.safetensors").write_bytes(b"")
    revisions.add(revision_of(str(folder), None))
    assert len(revisions) == 3


def test_other_files_do_not_change_the_revision_and_a_hub_commit_replaces_it(folder: Path) -> None:
    before = revision_of(str(folder), None)
    (folder / "README.md").write_text("changed")
    assert revision_of(str(folder), None) == before
    assert revision_of("owner/name", "c0ffee") == "c0ffee"


def test_a_fingerprint_depends_on_its_parts_and_their_order() -> None:
    assert fingerprint_of("a", "b") == fingerprint_of("a", "b")
    assert len({fingerprint_of("a", "b"), fingerprint_of("b", "a"), fingerprint_of("ab", ""), fingerprint_of("a", "b", "")}) == 4
    assert len(fingerprint_of("a")) == len("fp_") + 12


def test_the_version_is_the_projects_version() -> None:
    with (Path(__file__).parents[3] / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION
