"""Rates computed from token times, and each implementation on a tiny model."""

import io
import json

import pytest

from app.benchmarks import engine
from app.benchmarks.engine import BenchFailed, Rates, Trace, median, rates
from models import synthetic

TINY = synthetic.Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.save(TINY, tmp_path_factory.mktemp("bench"), 0)


def measure(folder, capsys, *argv):
    options = ["--model", str(folder), "--device", "cpu", "--context", "128", "--repeats", "2", *argv]
    code = engine.main(options)
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines() if line.startswith("{")], captured.err


def test_rates_of_a_run():
    trace = Trace(10.0, ((11.0, 13.0, 14.0, 15.0), (12.0, 13.0, 14.0, 15.0, 18.0)))
    run = rates(trace, 40)
    assert run.prefill_per_s == 40 / 2.0, "all requests had their first token at 12"
    assert run.decode_per_s == pytest.approx(2 / 2.0 + 3 / 3.0), "from 12 until the first request ends at 15"
    assert run.tokens_per_s == 9 / 8.0


def test_the_decode_rate_of_steps_whose_token_times_differ_a_little():
    trace = Trace(0.0, tuple(tuple(step + row / 1000 for step in (1.0, 2.0, 3.0, 4.0)) for row in range(8)))
    assert rates(trace, 8).decode_per_s == pytest.approx(8.0)


def test_rates_that_a_run_does_not_have():
    assert rates(Trace(0.0, ((2.0, 2.0), (2.0, 2.0))), 40) == Rates(None, None, 2.0)
    assert rates(Trace(0.0, ((2.0,), (2.0,))), 40) == Rates(20.0, None, 1.0)


def test_the_median_is_taken_of_each_rate_on_its_own():
    runs = [Rates(1.0, None, 9.0), Rates(2.0, None, 8.0), Rates(30.0, None, 1.0)]
    assert median(runs) == Rates(2.0, None, 8.0)


def test_a_run_with_missing_tokens_fails():
    with pytest.raises(BenchFailed, match=r"expected 2 x 3 tokens, got 2 x \[2, 3\]"):
        Trace(0.0, ((1.0, 2.0), (1.0, 2.0, 3.0))).check(2, 3)


@pytest.mark.parametrize("what", ["engine", "generate", "manager"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_each_implementation_is_measured(folder, capsys, what, quantize):
    code, lines, _ = measure(folder, capsys, "--what", what, "--quantize", quantize, "--at-once", "1", "3", "--new-tokens", "6")
    assert code == 0
    assert [(line["at_once"], line["requests"], line["prompt_tokens"]) for line in lines] == [(1, 1, 32), (3, 3, 32)]
    for line in lines:
        assert line["what"] == what and len(line["runs"]) == 2 and line["tokens_per_s"] > 0
        assert (line["decode_per_s"] is None) == (what == "generate")


def test_rounds_are_read_from_stdin(folder, capsys, monkeypatch):
    lines = io.StringIO('["one", "two", "three", "four"]\n["a king", "a queen"]\n')
    monkeypatch.setattr("sys.stdin", lines)
    code, (ready, *records), _ = measure(folder, capsys, "--chats", "--at-once", "2", "--new-tokens", "4")
    assert code == 0
    assert ready == {"kind": "ready"}
    assert [(line["at_once"], line["requests"]) for line in records] == [(2, 4), (2, 2)]
    assert all(line["prompt_tokens"] > len("assistant: ") / 3 and line["tokens_per_s"] > 0 for line in records)


def test_invalid_arguments_are_refused(folder, capsys, monkeypatch):
    code, _, err = measure(folder / "nowhere", capsys)
    assert code == 2 and "nowhere" in err and "Traceback" not in err
    monkeypatch.setattr(engine, "QUANTIZATIONS", ("none", "own"))
    code, _, err = measure(folder, capsys, "--what", "manager", "--quantize", "own")
    assert code == 2 and err.strip().endswith("transformers does not support quantize=own")
    with pytest.raises(SystemExit):
        measure(folder, capsys, "--what", "manager", "--chats", "--at-once", "1")
    with pytest.raises(SystemExit):
        measure(folder, capsys, "--chats", "--at-once", "1", "2")
