"""The measurement of scoring: both ways give the same scores, and what is counted is what was asked for."""

import argparse
from pathlib import Path

import pytest

from app.benchmarks.scoring import LONGEST, SHORTEST, _arguments, engine_scorer, measure, published_scorer, texts


def given(folder: Path, *more: str) -> argparse.Namespace:
    words = ["--model", str(folder), "--device", "cpu", "--dtype", "float32", "--vocabulary", "250", "--texts", "3", "--repeats", "1"]
    return _arguments([*words, *more])


def test_lengths_are_even_and_draws_repeat() -> None:
    made = texts(5, 300, 1)
    assert sorted(map(len, made)) == [SHORTEST, 288, 525, 762, LONGEST]
    assert made == texts(5, 300, 1) != texts(5, 300, 2)
    assert all(4 <= token < 300 for text in made for token in text)


def test_both_ways_give_the_same_scores(tiny_folder: Path, bundled: Path) -> None:
    asked = given(bundled, "--observer", f"{bundled}-base")
    batch = [text[:120] for text in texts(4, 250, 3)]
    assert engine_scorer(asked)(batch) == pytest.approx(published_scorer(asked)(batch), abs=1e-4)


def test_a_line_has_rates_memory_and_cost_by_length(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.benchmarks.scoring.LONGEST", 60)
    (line,) = measure(given(bundled, "--observer", f"{bundled}-base", "--lengths", "10", "20"))
    assert len(line["runs"]) == 1 and line["texts_per_s"] == line["runs"][0] > 0 and line["peak_bytes"] >= 0
    assert [one["tokens"] for one in line["by_length"]] == [10, 20] and len(line["scores"]) == 3
