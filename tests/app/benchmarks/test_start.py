"""The stages of a start add up to its time, and the load is the server's own."""

import io
import json
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import modeling_utils

from app.benchmarks import start
from app.benchmarks.start import Clock, install_timers, main
from app.engine import conversion
from app.models import loading, weights


def test_stages_do_not_overlap_and_add_up(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(start, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    clock = Clock()
    with clock.stage("outer"):
        now_s[0] += 0.05
        with clock.stage("inner"):
            now_s[0] += 0.1
    now_s[0] += 0.02
    seconds = {name: stage["s"] for name, stage in clock.results().items()}
    assert seconds["outer"] == pytest.approx(0.05) and seconds["inner"] == pytest.approx(0.1) and seconds["rest"] == pytest.approx(0.02)
    assert sum(seconds.values()) == pytest.approx(0.17)


def test_steps_in_other_threads_are_counted_apart():
    clock = Clock()
    step = clock.timed("copy", lambda: time.sleep(0.05))
    threads = [threading.Thread(target=step) for _ in range(2)]
    with clock.stage("wait"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert clock.other_threads_s["copy"] >= 0.1 and "copy" not in clock.stages and clock.results()["wait"]["s"] >= 0.05


def test_a_step_that_fails_ends_its_stage():
    clock = Clock()
    with pytest.raises(ValueError, match="no"), clock.stage("bad"):
        raise ValueError("no")
    time.sleep(0.02)
    assert clock.results()["rest"]["s"] >= 0.02


def test_timers_are_removed_afterwards():
    before = (loading.load_model, weights.AutoModelForCausalLM, modeling_utils.safe_open, conversion.prepack_layers, torch.Tensor.to)
    with install_timers(Clock(), "read", "nf4"):
        assert loading.load_model is not before[0] and modeling_utils.open is not open
    assert before == (
        loading.load_model,
        weights.AutoModelForCausalLM,
        modeling_utils.safe_open,
        conversion.prepack_layers,
        torch.Tensor.to,
    )
    assert not hasattr(modeling_utils, "open") and "to" not in vars(torch.Tensor)


@pytest.mark.parametrize(
    ("by", "quantize", "stages", "other_stages"),
    [
        ("mmap", "none", {"open", "deserialize", "prove", "warm_up"}, {"read", "quantize"}),
        ("read", "none", {"read", "deserialize", "prove", "warm_up"}, {"open", "quantize"}),
        ("pread", "int4", {"open", "deserialize", "quantize"}, {"read", "pack"}),
        ("mmap", "nf4", {"open", "deserialize", "quantize"}, {"read"}),
        ("mmap", "int8", {"open", "deserialize", "quantize"}, {"read"}),
    ],
)
def test_a_start_reports_its_stages_and_memory(tiny_folder, monkeypatch, capsys, by, quantize, stages, other_stages):
    requested = []
    create_engine, opens = loading.create_engine, modeling_utils.safe_open
    monkeypatch.setattr(loading, "create_engine", lambda settings: requested.append(settings) or create_engine(settings))
    monkeypatch.setattr(modeling_utils, "safe_open", lambda *a, **kwargs: requested.append(kwargs["backend"]) or opens(*a, **kwargs))
    for _ in range(4):  # of which one is not interrupted between two clocks
        requested.clear()
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
        assert main(["--model", str(tiny_folder), "--by", by, "--quantize", quantize, "--context", "64"]) == 0
        ready, record = map(json.loads, capsys.readouterr().out.splitlines())
        assert ready == {"ready": True}
        whole_s = sum(stage["s"] for stage in record["stages"].values())
        if whole_s == pytest.approx(record["load_s"], rel=0.02):
            break
    assert (requested[0].path, requested[0].quantize, requested[0].context) == (str(tiny_folder), quantize, 64)
    assert requested[1:] == {"mmap": ["mmap"], "pread": ["pread"], "read": []}[by], "how safetensors was told to read"
    assert stages <= set(record["stages"]) and not other_stages & set(record["stages"])
    assert whole_s == pytest.approx(record["load_s"], rel=0.02)
    assert record["first_token_s"] > 0 and record["threads"] == torch.get_num_threads()
    assert 0 < record["anon_bytes"] < record["rss_bytes"] <= record["rss_peak_bytes"]
    assert record["anon_bytes"] + record["file_bytes"] + record["shmem_bytes"] == pytest.approx(record["pss_bytes"], rel=0.01)


def test_nothing_is_loaded_when_the_caller_is_gone(tiny_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(start, "measure", lambda args: pytest.fail("loaded although the caller was gone"))
    assert main(["--model", str(tiny_folder)]) == 2


def test_a_model_that_cannot_be_measured_is_a_one_line_error(bundled, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{")
    for folder, message in ((bundled, "comes with an observer"), (tmp_path, str(tmp_path))):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
        assert main(["--model", str(folder)]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.out == '{"ready": true}\n'
