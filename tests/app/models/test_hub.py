"""GGUF files by hub name: from a cache laid out as huggingface_hub's, from a small server that speaks like the hub, or a clear sentence."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest

from app.errors import SetupError
from app.models.loading import create_engine
from app.models.source import _hub_source, source_of
from app.settings import ModelSettings
from models.gguf import write_gguf
from models.synthetic import Shape, save

COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a repository: two quantizations, one of them split into two parts."""
    folder = tmp_path_factory.mktemp("repository")
    shape = Shape(hidden=64, layers=1, heads=4, kv_heads=2, ff=128, vocabulary=700, context=64)
    model = save(shape, tmp_path_factory.mktemp("model"), 0)
    write_gguf(model, folder / "Tiny-Q8_0.gguf", "Q8_0")
    (folder / "F16").mkdir()
    split(write_gguf(model, tmp_path_factory.mktemp("whole") / "whole.gguf", "F16"), folder / "F16" / "Tiny-F16")
    (folder / "README.md").write_text("tiny")
    return folder


def split(whole: Path, stem: Path) -> None:
    """Write a GGUF file as two parts: all metadata and half of the tensors, and the other half."""
    reader = gguf.GGUFReader(whole)
    for part, tensors in enumerate((reader.tensors[:5], reader.tensors[5:]), 1):
        writer = gguf.GGUFWriter(f"{stem}-{part:05}-of-00002.gguf", "llama")
        for field in reader.fields.values():
            if part == 1 and not field.name.startswith("GGUF.") and field.name != "general.architecture":
                writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_uint16("split.no", part - 1)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way to the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _hub_source.cache_clear()
    return tmp_path


def put(cache: Path, name: str, repository: Path, files: list[str]) -> None:
    """Lay files into the cache as huggingface_hub does: blobs, and links to them in the snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    for file in files:
        blob = folder / "blobs" / hashlib.sha256(file.encode()).hexdigest()
        blob.write_bytes((repository / file).read_bytes())
        link = folder / "snapshots" / COMMIT / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


SPLIT = ["F16/Tiny-F16-00001-of-00002.gguf", "F16/Tiny-F16-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("wanted", "files", "served"),
    [
        ("Tiny-Q8_0.gguf", ["Tiny-Q8_0.gguf"], "Tiny-Q8_0"),
        ("q8_0", ["Tiny-Q8_0.gguf", *SPLIT], "tiny-GGUF:q8_0"),
        (SPLIT[0], SPLIT, "Tiny-F16"),
        ("F16", SPLIT, "tiny-GGUF:F16"),
    ],
)
def test_a_cached_file_is_served_offline(cache: Path, repository: Path, wanted: str, files: list[str], served: str) -> None:
    put(cache, "org/tiny-GGUF", repository, files)
    engine, facts = create_engine(ModelSettings(path=f"org/tiny-GGUF:{wanted}", slots=2))
    file = source_of(f"org/tiny-GGUF:{wanted}").gguf
    assert file is not None and COMMIT in file.path.parts and len(file.tensors) == 11
    assert (facts.name, facts.chat) == (served, True)
    assert engine.idle


def test_the_revision_is_that_of_the_file_and_covers_all_parts(cache: Path, repository: Path) -> None:
    put(cache, "org/tiny-GGUF", repository, ["Tiny-Q8_0.gguf", *SPLIT])
    one, other = (source_of(f"org/tiny-GGUF:{wanted}").weights_revision() for wanted in ("Q8_0", "F16"))
    assert one == source_of(str(repository / "Tiny-Q8_0.gguf")).weights_revision() != other
    second = (cache / "models--org--tiny-GGUF" / "snapshots" / COMMIT / SPLIT[1]).resolve()
    second.write_bytes(second.read_bytes()[:-1] + b"\x01")
    assert source_of("org/tiny-GGUF:F16").weights_revision() != other


@pytest.mark.parametrize("wanted", ["Tiny-Q8_0.gguf", "Q8_0"])
def test_what_is_neither_cached_nor_within_reach_is_named(cache: Path, wanted: str) -> None:
    with pytest.raises(
        SetupError, match=r"^org/none:.*not in the hub's cache \(.*\), and HF_HUB_OFFLINE is set\. .*: python -m app\.models pull org/none:"
    ):
        source_of(f"org/none:{wanted}")


def test_a_missing_part_is_named(cache: Path, repository: Path) -> None:
    put(cache, "org/tiny-GGUF", repository, SPLIT[:1])
    with pytest.raises(SetupError, match=r"F16/Tiny-F16-00002-of-00002\.gguf of org/tiny-GGUF is not in the hub's cache"):
        source_of(f"org/tiny-GGUF:{SPLIT[0]}")
    with pytest.raises(SetupError, match="give its first part"):
        source_of(f"org/tiny-GGUF:{SPLIT[1]}")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    folder: Path

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/api/models/org/tiny-GGUF":
            files = [{"rfilename": str(file.relative_to(self.folder))} for file in self.folder.rglob("*") if file.is_file()]
            self._answer(200, json.dumps({"id": "org/tiny-GGUF", "siblings": files}).encode(), {"Content-Type": "application/json"})
        else:
            self._file(send=True)

    def _file(self, send: bool) -> None:
        _, found, name = self.path.partition(f"/org/tiny-GGUF/resolve/{'main' if '/main/' in self.path else COMMIT}/")
        file = self.folder / name
        if self.path.startswith("/org/gated/"):
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
        elif not found:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            data = file.read_bytes()
            self._answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, send)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], send: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint(repository: Path) -> Iterator[str]:
    handler = type("TinyHub", (Hub,), {"folder": repository})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def opened(monkeypatch: pytest.MonkeyPatch, endpoint: str, *paths: str) -> list[str]:
    """One line for each path."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    _hub_source.cache_clear()
    lines = []
    for path in paths:
        try:
            file = source_of(path).gguf
            assert file is not None
            lines.append(f"{len(file.parts)} {len(file.tensors)} {file.path.name}")
        except SetupError as error:
            lines.append(error.message)
    return lines


def test_files_are_downloaded_once_and_what_the_hub_refuses_is_named(cache: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["org/tiny-GGUF:F16", "org/tiny-GGUF:Tiny-Q8_0.gguf"]
    refused = ["org/tiny-GGUF:Q2_K", "org/tiny-GGUF:none.gguf", "org/gated:a.gguf", "org/none:a.gguf", "org/none:Q8_0"]
    lines = opened(monkeypatch, endpoint, *paths, *refused)
    assert lines[:2] == ["2 11 Tiny-F16-00001-of-00002.gguf", "1 11 Tiny-Q8_0.gguf"]
    assert lines[2].startswith(
        "org/tiny-GGUF:Q2_K: none of its GGUF files is Q2_K; it has F16/Tiny-F16-00001-of-00002.gguf, Tiny-Q8_0.gguf;"
    )
    assert lines[3:5] == [
        "org/tiny-GGUF:none.gguf: the hub's org/tiny-GGUF has no file none.gguf",
        "org/gated:a.gguf: org/gated has terms to be accepted: do so on its page, and set HF_TOKEN to a token of the same account",
    ]
    for line, path in zip(lines[5:], ("org/none:a.gguf", "org/none:Q8_0"), strict=True):
        assert line == f"{path}: the hub has no org/none, or it is private: then set HF_TOKEN to a token that may read it"
    nowhere = "http://127.0.0.1:9"
    *again, unreachable = opened(monkeypatch, nowhere, *paths, "org/other:Q8_0")
    assert again == lines[:2]
    assert f"{nowhere} cannot be reached" in unreachable
