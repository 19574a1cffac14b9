"""What was proved of a model once is not proved again with the same files, and is with others."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from tinymodels import tiny

from app.engine import conversion, proof
from app.engine.engine import Engine
from app.engine.events import Delta
from app.engine.proof import Proof
from app.engine.request import Generate, SamplingParams
from app.models import proofs
from app.models.loading import create_engine
from app.settings import ModelSettings


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the records, empty at first."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(proofs, "kept_folder", lambda: folder)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose own forward was computed."""
    checked: list[str] = []

    class Counted(proof.Check):
        def __init__(self, model: object) -> None:
            super().__init__(model)  # type: ignore[arg-type]
            checked.append(self.name)

    monkeypatch.setattr(conversion, "Check", Counted)
    return checked


def load(folder: Path, **options: object) -> Engine:
    return create_engine(ModelSettings(path=str(folder), device="cpu", slots=2, **options))[0]  # type: ignore[arg-type]


def answer(engine: Engine) -> list[int]:
    engine.submit(Generate("a", (5, 9, 7, 3), 12, SamplingParams(temperature=0.8, seed=3), ignore_eos=True))
    events = []
    while not engine.idle:
        events += engine.step()
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


@pytest.mark.parametrize(("name", "quantize"), [("Llama", "int8"), ("Mistral", "none")])  # Mistral's layers have a sliding window
def test_a_second_start_serves_the_same_without_a_check(folder: Path, kept: Path, checks: list[str], name: str, quantize: str) -> None:
    tiny(name).save_pretrained(folder)
    first, second = load(folder, quantize=quantize), load(folder, quantize=quantize)
    assert len(checks) == 1 and len(list(kept.iterdir())) == 1
    assert first.performer.attention.windows == second.performer.attention.windows
    assert (first.performer.hidden_size, first.performer.weights) == (second.performer.hidden_size, second.performer.weights)
    assert answer(first) == answer(second)


def test_other_files_settings_or_code_are_checked(folder: Path, kept: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    load(folder, quantize="int8")
    assert len(checks) == 2
    weights = folder / "model.safetensors"
    content, about = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))  # as a copy that keeps its times
    load(folder)
    assert len(checks) == 3
    monkeypatch.setattr(proofs, "code_digests", lambda: ["another version"])
    load(folder)
    assert len(checks) == 4
    load(folder)
    assert len(checks) == 4


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"shapes": {"0": [1, 2]}, "windows": {}, "harmed": [], "hidden_size": 1})])
def test_a_damaged_record_is_replaced(folder: Path, kept: Path, checks: list[str], caplog: pytest.LogCaptureFixture, content: str) -> None:
    load(folder)
    (record,) = kept.iterdir()
    record.write_text(content)
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "the model is checked anew" in caplog.text
    load(folder)
    assert len(checks) == 2


def test_the_records_that_were_not_used_for_long_are_removed(
    folder: Path, kept: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "MAX_RECORDS", 2)
    for dtype in ("float32", "bfloat16", "float32", "auto"):
        load(folder, dtype=dtype)
    assert len(checks) == 3 and len(list(kept.iterdir())) == 2
    load(folder, dtype="float32")
    assert len(checks) == 3


def test_a_folder_that_cannot_be_written_to_costs_only_the_next_start(
    folder: Path, kept: Path, checks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    kept.rmdir()
    assert answer(load(folder))
    assert "each start checks it" in caplog.text and len(checks) == 1


def test_a_record_has_all_that_was_found_out() -> None:
    kept = Proof({0: (2, 16, 16)}, {0: None, 1: 128}, frozenset({"sinks"}), ("a", "b"), 64)
    assert proofs._decode(json.loads(proofs._encode(kept))) == kept
