"""The run file that the notebook reads, on made-up scores; it has the thresholds of the shipped calibration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.scoring.calibration import SMOLLM2_PATH, load
from app.scoring.sample import ScoreRow
from app.scoring.sources import LabelledText
from models.detector import build, prose, scores


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set as published and one with words cut; a text has a beginning. No model runs."""
    texts = [LabelledText("a", False, "x", "xsum"), LabelledText("b", True, "y", "xsum", "gpt")]
    monkeypatch.setattr(scores, "detect_sets", lambda data: [build.TextSet("xsum_gpt/0", texts), build.TextSet("xsum_gpt/25", texts)])
    monkeypatch.setattr(scores, "settings_of", lambda model: None)

    def score(settings: Any, journal: Path, found: list[LabelledText], passage_tokens: int, starts: Any) -> Any:
        rows = [ScoreRow(each.machine, each.group, each.domain, 100, {"perplexity": 12.3456}, {}, each.generator) for each in found]
        return None, [*rows, replace(rows[0], tokens=70, beginning=True), replace(rows[1], tokens=63)]

    monkeypatch.setattr(scores, "score_with_journal", score)


def test_a_line_for_each_text_that_is_long_enough(scored: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scores.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("detector-*.jsonl")
    assert capsys.readouterr().out == f"wrote {path}\n"
    manifest, *lines = map(json.loads, path.read_text().splitlines())
    assert manifest["tool"] == "detector" and manifest["methods"] == list(scores.METHODS)
    texts = [line for line in lines if line["kind"] == "text" and line["set"] == "xsum_gpt"]
    assert [(line["machine"], line["group"], line["tokens"]) for line in texts] == [(False, 0, 100), (True, 1, 100)]
    assert texts[0]["scores"][manifest["methods"].index("perplexity")] == 12.35 and texts[0]["judged"] is None
    people = [line for line in lines if line["kind"] == "text" and line["set"] == "people"]
    assert {line["domain"] for line in people} <= {*prose.POOL, *prose.MEASURED} and all(line["judged"] is not None for line in people)
    first = load(SMOLLM2_PATH).methods["combined"].buckets[0].machine[0]
    threshold = next(line for line in lines if line["kind"] == "border" and line["method"] == "combined")
    assert (threshold["value"], threshold["target"], threshold["higher"], threshold["min_tokens"]) == (first.value, first.target, True, 64)


def test_no_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scores.main(["--data", str(tmp_path), "--out", str(tmp_path), "--model", str(tmp_path)]) == 2
    assert "has no pairs" in capsys.readouterr().err and not [*tmp_path.glob("*.jsonl")]
