"""A cache in 8 bits beside another, on a tiny model."""

import gzip
import json

import pytest
from driving import kernel_or_skip

from app.benchmarks import cache
from models import synthetic

TINY = synthetic.Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=256)


def test_perplexity_and_speed_are_measured_with_both_types(tmp_path, capsys):
    kernel_or_skip()
    folder = synthetic.save(TINY, tmp_path / "model", 0)
    (tmp_path / "text.gz").write_bytes(gzip.compress(("The fox and the crow went up the hill. " * 40).encode()))
    command = ["--model", str(folder), "--text", str(tmp_path / "text.gz"), "--window", "64", "--windows", "3"]
    assert cache.main([*command, "--at-once", "2", "--prompt-tokens", "30", "--new-tokens", "4", "--rounds", "1"]) == 0
    text, speed = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert text["windows"] == 3 and text["auto"] != text["int8"] == pytest.approx(text["auto"], rel=0.01)
    (round_,) = speed["rounds"]
    assert speed["ratio"] == round_["int8"] / round_["auto"]
