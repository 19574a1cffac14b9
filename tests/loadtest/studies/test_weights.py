"""Quantizations compared: the order, the table, a failure that is recorded, and one real start without the bundled observer."""

import json
from pathlib import Path

import pytest

from loadtest.process import ProgramFailed, run_module
from loadtest.studies import weights
from loadtest.studies.weights import plan_measurements, start_engine, table, without_observer

AREAS = {"binoculars": [0.6, 0.5, 0.7]}
ROWS = [
    {"kind": "start", "quantize": "none", "dtype": "float32", "memory_bytes": 40e6, "load_s": 1.0},
    {"kind": "start", "quantize": "none", "dtype": "float32", "memory_bytes": 60e6, "load_s": 2.0},
    {"kind": "speed", "quantize": "none", "at_once": 1, "tokens_per_s": 700.0},
    {"kind": "speed", "quantize": "none", "at_once": 8, "tokens_per_s": 2000.0},
    {"kind": "quality", "quantize": "none", "perplexity": 40.0, "auroc": AREAS},
    {"kind": "failed", "quantize": "nf4", "why": "no"},
]


def test_every_repeat_has_its_own_order_and_quality_comes_last():
    found = plan_measurements(["none", "nf4"], 6, 0)
    cells = [[cell[:2] for cell in found[first : first + 4]] for first in range(0, 24, 4)]
    assert all(sorted(part) == sorted(cells[0]) for part in cells) and len(set(map(tuple, cells))) > 1
    assert found[24:] == [("quality", "none", 1), ("quality", "nf4", 1)]
    assert found == plan_measurements(["none", "nf4"], 6, 0) != plan_measurements(["none", "nf4"], 6, 1)


def test_the_table_has_medians_and_dashes():
    shown = table(ROWS, ["none", "nf4"], [1, 8]).splitlines()
    assert shown[0] == "| quantize | dtype | memory MB | load s | tokens/s of 1, 8 at once | perplexity | AUROC |"
    assert shown[2:] == ["| none | float32 | 50 | 1.50 | 700, 2,000 | 40.00 | binoculars 0.600 |", "| nf4 | - | - | - | -, - | - | - |"]


def test_the_bundled_model_is_measured_without_its_observer(bundled):
    with without_observer(str(bundled)) as folder:
        assert Path(folder).resolve() != bundled and (Path(folder) / "config.json").read_bytes() == (bundled / "config.json").read_bytes()
    assert not Path(folder).exists()
    with without_observer("owner/name") as name:
        assert name == "owner/name"


def test_a_start_reports_the_memory_it_added(tiny_folder):
    found = start_engine(str(tiny_folder), "none", "cpu")
    assert found["load_s"] > 0 and found["first_token_s"] > 0 and found["dtype"] == "float32"
    assert 0 < found["memory_bytes"] == found["rss_bytes"] - found["imported_bytes"]


def test_a_run_records_rows_and_failures(monkeypatch, tmp_path, capsys):
    commands = []

    def fake_run_module(*words):
        commands.append(words)
        if words[0] == "models.detector.quality":
            raise ProgramFailed("models.detector.quality ended with code 2: no books")
        return [{"kind": "bare", "at_once": 1, "tokens_per_s": 5.0}]

    monkeypatch.setattr(weights, "run_module", fake_run_module)
    monkeypatch.setattr(weights, "start_engine", lambda *_: {"dtype": "bfloat16", "load_s": 1.0, "memory_bytes": 1e6})
    assert weights.main(["--quick", "--quantize", "int4", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("weights-*.jsonl")
    manifest, *rows = map(json.loads, path.read_text().splitlines())
    assert manifest["quick"] and manifest["model"]["id"] == weights.MODEL and manifest["options"]["quantize"] == ["int4"]
    assert sorted(row["kind"] for row in rows) == ["failed", "speed", "speed", "start", "start"]
    assert next(row["why"] for row in rows if row["kind"] == "failed").endswith("no books")
    speed = next(words for words in commands if words[0] == "app.benchmarks.engine")
    assert speed[speed.index("--dtype") + 1] == "bfloat16", "as the start computed"
    assert "Quick run: not a measurement." in capsys.readouterr().out


def test_quality_may_be_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(
        weights,
        "run_module",
        lambda *words: [] if words[0] == "app.benchmarks.engine" else pytest.fail("quality was asked for"),
    )
    monkeypatch.setattr(weights, "start_engine", lambda *_: {"dtype": "bfloat16", "load_s": 1.0, "memory_bytes": 1e6})
    assert weights.main(["--quick", "--texts", "0", "--out", str(tmp_path)]) == 0


def test_run_module():
    with pytest.raises(ProgramFailed, match="ended with code 2"):
        run_module("json.tool", "--no-such-option")
    assert run_module("json.tool", "--help") == []
