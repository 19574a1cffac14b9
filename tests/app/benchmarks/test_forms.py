"""What a form costs, on a tiny model: all kinds are measured, and an answer that ends too early is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.benchmarks import forms
from app.benchmarks.engine import print_json_lines
from models import synthetic

TINY = synthetic.Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(synthetic.save(TINY, tmp_path_factory.mktemp("forms"), 0))


def run(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[dict[str, Any]], str]:
    argv = ["--model", str(folder), "--device", "cpu", "--dtype", "float32", "--streams", "2", "--context", "512"]
    argv += ["--repeats", "1", *options]
    code = print_json_lines(forms.measure(forms.parse_args(argv)))
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines() if line.startswith("{")], captured.err


def test_all_kinds_are_measured_beside_text_of_the_same_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(folder, capsys, "--steps", "5", "--thought-tokens", "4")
    assert code == 0 and [line["kind"] for line in lines] == list(forms.KINDS)
    assert all(line["steps"] == 5 and line["step_ms"] > 0 for line in lines)
    for line in lines:  # a step gives each stream a token at least
        assert line["step_tokens"] >= 2 and line["token_ms"] > 0
    assert [line["ratio"] for line in lines if line["kind"].startswith("text")] == [1.0, 1.0]


def test_an_answer_that_ends_before_all_steps_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(folder, capsys, "--steps", "1000", "--thought-tokens", "4")
    assert code == 2 and "ended before all steps" in error
