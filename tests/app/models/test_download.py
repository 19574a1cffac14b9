"""Downloads from a small server that speaks like the hub: progress, breaks, hashes, full disks, revisions; commands for the cache."""

import logging
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import COMMIT, OLDER, FakeHub
from huggingface_hub import constants

from app.errors import SetupError
from app.models import __main__ as command
from app.models import download, progress
from app.models.hub import fetch_weights
from app.models.loading import create_engine
from app.models.source import _hub_source, source_of
from app.settings import ModelSettings

NAME = "org/tiny"
CHUNK = 10_000  # bytes that a break costs at most


@pytest.fixture
def hub(tiny_folder: Path, other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Two commits of a model, an empty cache, and huggingface_hub's addresses changed to the small server."""
    contents = [{file.name: file.read_bytes() for file in sorted(folder.iterdir())} for folder in (tiny_folder, other_folder)]
    with FakeHub({NAME: {COMMIT: contents[0], OLDER: contents[1]}}).run() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        monkeypatch.setattr("app.models.staging.ROOT", tmp_path)
        _hub_source.cache_clear()
        yield hub
    _hub_source.cache_clear()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _hub_source.cache_clear()


def test_a_hub_model_is_downloaded_and_served_and_then_served_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, int, int]] = []
    progress.listen(lambda *step: steps.append(step))
    _, facts = create_engine(ModelSettings(path=NAME, slots=2, device="cpu"))
    size = len(hub.files[NAME][COMMIT]["model.safetensors"])
    assert (facts.name, facts.revision) == ("tiny", COMMIT)
    downloaded = [step for step in steps if step[0] == "downloading"]
    assert downloaded[0] == ("downloading", 0, size) and downloaded[-1] == ("downloading", size, size)
    assert list(dict.fromkeys(stage for stage, _, _ in steps)) == ["downloading", "loading", "warming up"]
    offline(monkeypatch)
    assert create_engine(ModelSettings(path=NAME, slots=2, device="cpu"))[1].revision == COMMIT
    assert hub.sent["model.safetensors"] == size
    progress._listeners.clear()


@pytest.mark.parametrize("revision", ["older", OLDER])
def test_a_revision_is_a_branch_or_a_commit(hub: FakeHub, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = create_engine(ModelSettings(path=f"{NAME}@{revision}", slots=2, device="cpu"))
    assert (facts.name, facts.revision, facts.context) == ("tiny", OLDER, 96)  # the other folder's context
    offline(monkeypatch)
    assert source_of(f"{NAME}@{revision}").weights_revision() == OLDER
    with pytest.raises(SetupError):
        create_engine(ModelSettings(path=NAME, slots=2, device="cpu"))  # main was never downloaded


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.breaks["model.safetensors"] = 2
    caplog.set_level(logging.INFO, "app.models.progress")
    fetch_weights(NAME, NAME, None)
    size = len(hub.files[NAME][COMMIT]["model.safetensors"])
    assert size <= hub.sent["model.safetensors"] <= size + 2 * CHUNK and len(hub.ranges) == 2
    assert "(100%)" in caplog.text and f"{size / 1e6:.1f} MB" in caplog.text


def test_what_had_arrived_when_a_start_ended_is_not_fetched_again(hub: FakeHub) -> None:
    hub.breaks["model.safetensors"] = 100
    with pytest.raises(SetupError, match="what has arrived is kept, start again to go on from there"):
        fetch_weights(NAME, NAME, None)
    arrived, hub.breaks["model.safetensors"] = hub.sent["model.safetensors"], 0
    fetch_weights(NAME, NAME, None)
    size = len(hub.files[NAME][COMMIT]["model.safetensors"])
    assert hub.sent["model.safetensors"] - arrived <= size // 2 and not hub.ranges[-1].startswith("bytes=0")


def test_a_damaged_file_is_refused_and_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.damaged.add("model.safetensors")
    with pytest.raises(SetupError, match=r"model\.safetensors of org/tiny arrived damaged: its hash is .* the hub lists"):
        fetch_weights(NAME, NAME, None)
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.damaged.clear()
    fetch_weights(NAME, NAME, None)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1


def test_a_disk_without_room_is_named_before_anything_is_sent(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage(10**6, 10**6, 1000))
    with pytest.raises(SetupError, match=r"org/tiny: .* MB are to be downloaded, but the disk of .* has 0\.0 MB free: make room"):
        fetch_weights(NAME, NAME, None)
    assert not hub.sent["model.safetensors"]


def test_a_disk_that_becomes_full_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.models.resume.http_get", full)
    with pytest.raises(SetupError, match="the disk of .* is full: make room"):
        fetch_weights(NAME, NAME, None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("org/none", "the hub has no org/none, or it is private"),
        ("org/gated", "org/gated has terms to be accepted"),
        ("org/tiny@v9", "the hub's org/tiny has no revision v9: give a branch, a tag or a commit"),
        ("org/tiny:Q4_K_M", "none of its GGUF files is Q4_K_M; it has no GGUF files"),
        ("tiny", "'tiny' is no name of the hub"),
        ("org/tiny@a:b@c", "is no name of the hub"),
    ],
)
def test_what_cannot_be_pulled_is_a_sentence(hub: FakeHub, capsys: pytest.CaptureFixture[str], name: str, sentence: str) -> None:
    hub.gated.add("org/gated")
    assert command.main(["pull", name]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("litmus: ") and sentence in error


def test_what_is_missing_offline_is_named_with_the_command_that_fetches_it(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(NAME).config("model.path")  # the config is cached, the weights are not
    offline(monkeypatch)
    with pytest.raises(SetupError, match=r"its weights of org/tiny is not in the hub's cache .* python -m app\.models pull org/tiny"):
        fetch_weights(NAME, NAME, None)


def test_pull_list_and_remove(hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda scan=huggingface_hub.scan_cache_dir: scan(constants.HF_HUB_CACHE))
    assert command.main(["list"]) == 0 and "no models of the hub" in capsys.readouterr().out
    assert command.main(["pull", NAME]) == 0 and command.main(["pull", f"{NAME}@older"]) == 0
    pulled = capsys.readouterr().out
    assert f"{NAME}: " in pulled and f"{NAME}@older: " in pulled
    offline(monkeypatch)
    assert create_engine(ModelSettings(path=f"{NAME}@older", slots=2, device="cpu"))[1].revision == OLDER
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in listed) == sorted([f"{NAME}@{COMMIT[:12]}", f"{NAME}@{OLDER[:12]}"])
    assert command.main(["rm", f"{NAME}@older"]) == 0 and command.main(["list"]) == 0
    assert "1 revisions removed" in (text := capsys.readouterr().out) and OLDER[:12] not in text.splitlines()[-1]
    assert command.main(["rm", NAME]) == 0 and command.main(["rm", NAME]) == 2
    assert "org/tiny is not on this disk" in capsys.readouterr().err


def test_a_further_shard_is_downloaded_with_the_index(hub: FakeHub, tmp_path: Path) -> None:
    files = hub.files[NAME][COMMIT]
    files["model-00001-of-00002.safetensors"] = files["model-00002-of-00002.safetensors"] = files.pop("model.safetensors")
    files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    files["pytorch_model.bin"] = b"not wanted beside safetensors"
    fetch_weights(NAME, NAME, None)
    arrived = {file.name for file in tmp_path.rglob("model*") if file.is_file()}
    assert arrived == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert not list(tmp_path.rglob("pytorch_model.bin"))
