"""The run that the notebook reads, on made-up scores; the bundled calibration's borders are in it."""

import json

import pytest

from app.scoring.calibration import BESIDE, load
from app.scoring.sample import Row
from models.detector import build, scores


def row(machine, book, domain, tokens=100, **found):
    return Row(machine, f"{book}/1", domain, tokens, {"binoculars": 0.123456, **found})


@pytest.fixture
def scored(monkeypatch):
    """Three books were fitted on; nothing is scored."""
    stories = [row(False, book, "human") for book in "abcde"] + [row(True, "d", "T=1"), row(True, "e", "T=1", tokens=63)]
    rows = {"stories": stories, "xsum_gpt/0": [row(False, "x", ""), row(True, "y", "", binoculars=None)]}
    monkeypatch.setattr(build, "told", lambda data, work: build.Set("stories", []))
    monkeypatch.setattr(build, "pairs", lambda data: [build.Set("xsum_gpt/0", []), build.Set("xsum_gpt/25", [])])
    monkeypatch.setattr(build, "rows_of", lambda sets, settings, journal: (None, {one.name: rows[one.name] for one in sets}))


def test_a_line_for_each_text_that_is_long_enough(scored, bundled, tmp_path, capsys):
    assert scores.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("detector-*.jsonl")
    assert capsys.readouterr().out == f"wrote {path}\n"
    manifest, *lines = map(json.loads, path.read_text().splitlines())
    assert manifest["tool"] == "detector" and manifest["model"]["id"] == "storyteller with storyteller-base"
    texts = [line for line in lines if line["kind"] == "text"]
    told = [(line["set"], line["machine"], line["group"], line.get("domain"), line["scores"][0]) for line in texts]
    own = [("stories", False, 0, "human", 0.1235), ("stories", False, 1, "human", 0.1235), ("stories", True, 0, "T=1", 0.1235)]
    assert told == [*own, ("xsum_gpt", False, 0, None, 0.1235), ("xsum_gpt", True, 1, None, None)]
    assert manifest["methods"][0] == "binoculars" and texts[0]["scores"][1:] == [None] * (len(manifest["methods"]) - 1)
    first = load(bundled / BESIDE).methods["binoculars"].buckets[0].machine[0]
    border = next(line for line in lines if line["kind"] == "border" and line["method"] == "binoculars")
    assert (border["value"], border["target"], border["higher"], border["min_tokens"]) == (first.value, first.target, False, 64)


def test_no_books(tmp_path, capsys):
    assert scores.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "has no books" in capsys.readouterr().err and not [*tmp_path.glob("*.jsonl")]
