"""The run file that the notebook reads, on made-up scores; it has the thresholds of the bundled calibration."""

import json

import pytest

from app.scoring.calibration import CALIBRATION_FILE, load
from app.scoring.sample import ScoreRow
from models.detector import build, scores


def row(machine, book, domain, tokens=100, **more_scores):
    return ScoreRow(machine, f"{book}/1", domain, tokens, {"binoculars": 0.123456, **more_scores})


@pytest.fixture
def scored_sets(monkeypatch):
    """Rows of five books, of which the first three were fitted on, and of one `detect/` set; no model runs."""
    stories = [row(False, book, "human") for book in "abcde"] + [row(True, "d", "T=1"), row(True, "e", "T=1", tokens=63)]
    rows = {"stories": stories, "xsum_gpt/0": [row(False, "x", ""), row(True, "y", "", binoculars=None)]}
    monkeypatch.setattr(build, "story_set", lambda data, work: build.TextSet("stories", []))
    monkeypatch.setattr(build, "detect_sets", lambda data: [build.TextSet("xsum_gpt/0", []), build.TextSet("xsum_gpt/25", [])])
    monkeypatch.setattr(
        build, "score_sets", lambda sets, settings, journal: (None, {text_set.name: rows[text_set.name] for text_set in sets})
    )


def test_a_line_for_each_text_that_is_long_enough(scored_sets, bundled, tmp_path, capsys):
    assert scores.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("detector-*.jsonl")
    assert capsys.readouterr().out == f"wrote {path}\n"
    manifest, *lines = map(json.loads, path.read_text().splitlines())
    assert manifest["tool"] == "detector" and manifest["model"]["id"] == "storyteller with storyteller-base"
    texts = [line for line in lines if line["kind"] == "text"]
    written = [(line["set"], line["machine"], line["group"], line.get("domain"), line["scores"][0]) for line in texts]
    own = [("stories", False, 0, "human", 0.1235), ("stories", False, 1, "human", 0.1235), ("stories", True, 0, "T=1", 0.1235)]
    assert written == [*own, ("xsum_gpt", False, 0, None, 0.1235), ("xsum_gpt", True, 1, None, None)]
    assert manifest["methods"][0] == "binoculars" and texts[0]["scores"][1:] == [None] * (len(manifest["methods"]) - 1)
    first = load(bundled / CALIBRATION_FILE).methods["binoculars"].buckets[0].machine[0]
    threshold = next(line for line in lines if line["kind"] == "border" and line["method"] == "binoculars")
    assert (threshold["value"], threshold["target"], threshold["higher"], threshold["min_tokens"]) == (first.value, first.target, False, 64)


def test_no_books(tmp_path, capsys):
    assert scores.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "has no books" in capsys.readouterr().err and not [*tmp_path.glob("*.jsonl")]
