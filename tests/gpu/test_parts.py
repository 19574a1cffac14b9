"""The program that runs the parts: what fails, hangs or dies is told from what is right, and the next part runs. Then the parts themselves,
with tiny shapes on a CPU.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from flash import as_on_cuda, use_flash
from gpu import answers, betweens, divided, parts, peers, quantized, speed
from gpu.marks import TINY, Shape
from gpu.parts import PARTS, limit_s, run_part
from gpu.report import Report
from gpu.running import random_tokens
from gpu.shapes import VOCABULARY, save_tiny
from transformers import AutoModelForCausalLM

from app.engine import recorded
from app.engine.sampler import row_numbers

GOOD = """print('a library speaks'); print('{"kind": "check", "name": "a", "ok": true}')"""
WRONG = """print('{"kind": "check", "name": "b", "ok": false}'); import sys; sys.exit(1)"""
DIES = """print('{"kind": "measure", "name": "c"}', flush=True); import os; os.abort()"""
HANGS = """print('{"kind": "measure", "name": "d"}', flush=True); import time; time.sleep(600)"""


@pytest.mark.parametrize(
    ("program", "seconds", "good", "last"),
    [
        (GOOD, 60, True, {"name": "a", "ok": True}),
        (WRONG, 60, False, {"name": "b", "ok": False}),
        (DIES, 60, False, {"kind": "ended", "ok": False, "why": "ended with code -6"}),
        (HANGS, 0.5, False, {"kind": "ended", "ok": False, "why": "stopped after 0 s"}),
    ],
)
def test_a_part_is_judged_by_its_lines_and_its_end(tmp_path: Path, program, seconds, good, last):
    lines = []
    assert run_part([sys.executable, "-S", "-c", program], seconds, tmp_path / "log", lines.append) is good
    assert last.items() <= lines[-1].items()


def test_the_exit_code_names_the_parts_that_failed(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "run_part", lambda command, *_: command[command.index("--run") + 1] not in ("speed", "server"))
    code = parts.main(["--out", str(tmp_path), "--parts", "answers", "speed", "server"])
    assert code == 4 + 16
    (file,) = tmp_path.glob("gpu-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["kind"] == "manifest" and lines[0]["versions"]["torch"]
    assert [line["part"] for line in lines if line["kind"] == "part" and not line["ok"]] == ["speed", "server"]
    assert "FAIL speed" in capsys.readouterr().out


def test_a_part_gets_its_share_of_what_is_left():
    assert limit_s(PARTS, 480.0) == pytest.approx(480 * PARTS[0].weight / sum(part.weight for part in PARTS))
    assert limit_s(PARTS[-1:], 33.0) == 33.0
    assert len({part.number for part in PARTS}) == len(PARTS) and all(part.number.bit_count() == 1 for part in PARTS)


def test_a_check_that_raises_does_not_stop_the_next(capsys):
    report = Report(60)
    with report.check("breaks") as found:
        found["error"] = 0.123456789
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    with report.check("goes on"):
        pass
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert not first["ok"] and first["why"].startswith("RuntimeError: CUDA error") and first["error"] == 0.1235
    assert second["ok"] and report.failed


def test_what_has_no_time_left_is_said(capsys):
    assert not Report(1.0).has("decode", 8.0)
    assert json.loads(capsys.readouterr().out)["kind"] == "skip"


def lines_of(capsys, run, options, *more):
    """What a part prints, run in this process; it fails unless all its checks go well."""
    report = Report(300)
    run(report, options, *more)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert not report.failed, [line for line in lines if not line.get("ok", True)]
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", scratch=tmp_path_factory.mktemp("gpu"), port=8530, run="speed")


def test_answers_on_a_cpu(options, capsys):
    lines = lines_of(capsys, answers.run, options, ("Llama",))
    assert {f"Llama, float32: {title}" for title in answers.CHECKS} < set(lines)


def test_two_cards_are_not_here(options, capsys):
    (line,) = lines_of(capsys, divided.run, options).values()
    assert line["kind"] == "skip" and line["why"] == "it takes two cards, and 0 are here"


def test_a_wrong_engine_fails_the_answers(options, capsys, monkeypatch):
    """Each decoding slot runs another token than was sampled: what the checks are there to find."""
    write = answers.Engine._run

    def run_shifted(engine, plan, events):
        for slot in plan.decodes:
            slot.tokens[-1] ^= 1
        write(engine, plan, events)

    monkeypatch.setattr(answers.Engine, "_run", run_shifted)
    report = Report(300)
    answers.check_float32(report, "Llama", answers.save_tiny("Llama", options.scratch / "wrong"), "cpu")
    failed = {json.loads(line)["name"] for line in capsys.readouterr().out.splitlines() if '"ok": false' in line}
    assert "Llama, float32: greedy equals generate" in failed and "Llama, float32: a cancel" in failed


def test_quantized_layers_on_a_cpu(options, capsys):
    assert "nf4: logits are those of transformers with the same layers" in lines_of(capsys, quantized.run, options)


def test_speed_on_a_cpu(options, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SLOTS", (1, 4))
    monkeypatch.setattr(speed, "NEW", 8)
    lines = lines_of(capsys, speed.run, options, TINY)
    assert lines["small, bfloat16: decode at 4 slots"]["bandwidth_share"] > 0
    assert lines["small, bfloat16: prefill, 4 prompts of 256 tokens at once"]["flops_share"] > 0


def test_what_lies_between_products_is_timed_both_ways(tmp_path: Path, monkeypatch, capsys):
    use_flash(monkeypatch)
    monkeypatch.setattr(betweens, "TIMED_ROWS", (2,))
    with as_on_cuda():
        engine = answers.start(save_tiny("Llama", tmp_path / "model"), "cpu", "float32")
    decoder = engine.performer._decoder
    shape = Shape(decoder.layers[0].input_norm.weight.numel(), 1, decoder.heads, decoder.kv_heads, decoder.inner, VOCABULARY, 64)
    betweens.measure_betweens(Report(60), engine, shape, "tiny")
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "between products" in line]
    assert min(line[f"{part}_{way}_us"] for part in ("norm", "rotate", "gate") for way in ("triton", "torch")) > 0


def test_peers_on_a_cpu(options, capsys, monkeypatch):
    monkeypatch.setattr(peers, "NEW", 4)
    lines = lines_of(capsys, peers.run, options, TINY)
    assert lines["generate, 2 at once"]["tokens_per_s"] > 0 and lines["continuous batching, 2 at once"]["tokens_per_s"] > 0


@pytest.mark.parametrize("is_wrong", [False, True])
def test_recorded_steps_as_on_a_card(tmp_path: Path, monkeypatch, capsys, is_wrong):
    use_flash(monkeypatch)
    folder, report = save_tiny("Llama", tmp_path / "model"), Report(60)
    with as_on_cuda():
        engine = answers.start(folder, "cpu", "float32")
    eager = answers.start(folder, "cpu", "float32", graphs=False)
    if is_wrong:
        monkeypatch.setattr(recorded, "row_numbers", lambda params, position: row_numbers(params, position + 1))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [random_tokens(random.Random(length), length) for length in (20, 300)]
    answers.check_recorded(report, "Llama, bfloat16", engine, eager, (model, prompts))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line.get("ok") for line in lines] == [True, not is_wrong, True, None]
    assert is_wrong or lines[-1]["share"] == 1
