"""A start's stages: every moment has one, and the load is the server's own."""

import io
import json
import sys
import threading
import time

import pytest
import torch
from transformers import modeling_utils

from app.benchmarks import start
from app.benchmarks.start import Clock, main, timers
from app.engine import flat
from app.models import loading


def test_stages_are_exclusive_and_add_up():
    clock = Clock()
    start_s = time.perf_counter()
    with clock.stage("outer"):
        time.sleep(0.05)
        with clock.stage("inner"):
            time.sleep(0.1)
    time.sleep(0.02)
    found = {name: stage["s"] for name, stage in clock.shown().items()}
    assert found["outer"] == pytest.approx(0.05, abs=0.03) and found["inner"] == pytest.approx(0.1, abs=0.03) and found["rest"] >= 0.02
    assert sum(found.values()) == pytest.approx(time.perf_counter() - start_s, abs=0.01)


def test_other_threads_count_beside():
    clock = Clock()
    step = clock.timed("copy", lambda: time.sleep(0.05))
    threads = [threading.Thread(target=step) for _ in range(2)]
    with clock.stage("wait"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert clock.beside["copy"] >= 0.1 and "copy" not in clock.stages and clock.shown()["wait"]["s"] >= 0.05


def test_a_step_that_fails_ends_its_stage():
    clock = Clock()
    with pytest.raises(ValueError, match="no"), clock.stage("bad"):
        raise ValueError("no")
    time.sleep(0.02)
    assert clock.shown()["rest"]["s"] >= 0.02


def test_timers_are_gone_afterwards():
    before = (loading._load, loading.AutoModelForCausalLM, modeling_utils.safe_open, flat.quicken, torch.Tensor.to)
    with timers(Clock(), "read", "nf4"):
        assert loading._load is not before[0] and modeling_utils.open is not open
    assert before == (loading._load, loading.AutoModelForCausalLM, modeling_utils.safe_open, flat.quicken, torch.Tensor.to)
    assert not hasattr(modeling_utils, "open") and "to" not in vars(torch.Tensor)


@pytest.mark.parametrize(
    ("by", "quantize", "taken", "not_taken"),
    [
        ("mmap", "none", {"open", "deserialize", "prove", "warm_up"}, {"read", "quantize"}),
        ("read", "none", {"read", "deserialize", "prove", "warm_up"}, {"open", "quantize"}),
        ("pread", "int4", {"open", "deserialize", "quantize"}, {"read", "pack"}),
        ("mmap", "nf4", {"open", "deserialize", "quantize"}, {"read"}),
        ("mmap", "int8", {"open", "deserialize", "quantize"}, {"read"}),
    ],
)
def test_a_start(tiny_folder, monkeypatch, capsys, by, quantize, taken, not_taken):
    asked = []
    create_engine, opens = loading.create_engine, modeling_utils.safe_open
    monkeypatch.setattr(loading, "create_engine", lambda settings: asked.append(settings) or create_engine(settings))
    monkeypatch.setattr(modeling_utils, "safe_open", lambda *a, **given: asked.append(given["backend"]) or opens(*a, **given))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["--model", str(tiny_folder), "--by", by, "--quantize", quantize, "--context", "64"]) == 0
    ready, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"ready": True}
    assert (asked[0].path, asked[0].quantize, asked[0].context) == (str(tiny_folder), quantize, 64)
    assert asked[1:] == {"mmap": ["mmap"], "pread": ["pread"], "read": []}[by], "how safetensors was asked to read"
    assert taken <= set(found["stages"]) and not not_taken & set(found["stages"])
    assert sum(stage["s"] for stage in found["stages"].values()) == pytest.approx(found["load_s"], rel=0.02)
    assert found["first_token_s"] > 0 and found["threads"] == torch.get_num_threads()
    assert 0 < found["anon_bytes"] < found["rss_bytes"] <= found["rss_peak_bytes"]
    assert found["anon_bytes"] + found["file_bytes"] + found["shmem_bytes"] == pytest.approx(found["pss_bytes"], rel=0.01)


def test_nobody_waits(tiny_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(start, "measure", lambda given: pytest.fail("loaded for nobody"))
    assert main(["--model", str(tiny_folder)]) == 2


def test_what_cannot_be_measured_is_a_sentence(bundled, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{")
    for folder, words in ((bundled, "brings an observer"), (tmp_path, str(tmp_path))):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
        assert main(["--model", str(folder)]) == 2
        said = capsys.readouterr()
        assert words in said.err and said.out == '{"ready": true}\n'
