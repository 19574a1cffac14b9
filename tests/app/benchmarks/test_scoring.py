"""The scoring benchmark: both implementations give the same scores, and a result has all its parts."""

import argparse
from pathlib import Path

import pytest

from app.benchmarks.scoring import MAX_TOKENS, MIN_TOKENS, engine_scorer, measure, parse_args, published_scorer, random_texts


def args_for(folder: Path, *options: str) -> argparse.Namespace:
    argv = ["--model", str(folder), "--device", "cpu", "--dtype", "float32", "--vocabulary", "250", "--texts", "3", "--repeats", "1"]
    return parse_args([*argv, *options])


def test_lengths_are_evenly_spaced_and_a_seed_repeats_its_texts() -> None:
    drawn = random_texts(5, 300, 1)
    assert sorted(map(len, drawn)) == [MIN_TOKENS, 288, 525, 762, MAX_TOKENS]
    assert drawn == random_texts(5, 300, 1) != random_texts(5, 300, 2)
    assert all(4 <= token < 300 for text in drawn for token in text)


def test_both_implementations_give_the_same_scores(tiny_folder: Path, bundled: Path) -> None:
    args = args_for(bundled, "--observer", f"{bundled}-base")
    batch = [text[:120] for text in random_texts(4, 250, 3)]
    assert engine_scorer(args)(batch) == pytest.approx(published_scorer(args)(batch), abs=1e-4)


def test_a_result_has_rates_memory_and_cost_by_length(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.benchmarks.scoring.MAX_TOKENS", 60)
    (line,) = measure(args_for(bundled, "--observer", f"{bundled}-base", "--lengths", "10", "20"))
    assert len(line["runs"]) == 1 and line["texts_per_s"] == line["runs"][0] > 0 and line["peak_bytes"] >= 0
    assert [entry["tokens"] for entry in line["by_length"]] == [10, 20] and len(line["scores"]) == 3
