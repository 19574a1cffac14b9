"""Quantized layers on the card: logits against transformers' own use of them, memory against what the estimate and the ledger say, and a
card that has no memory left.
"""

import random
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from gpu import fourbit, mixtures, running
from gpu.machine import card_used
from gpu.marks import ONE_B, TINY, Shape
from gpu.report import Report
from gpu.running import ask, error_of, logits_of, random_tokens, release, tokens_of
from gpu.shapes import save_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.engine.engine import Engine
from app.engine.events import Failed
from app.engine.request import Generate, SamplingParams, Score, Window
from app.engine.rounding import quantize_layers
from app.errors import SetupError
from app.estimate.plan import Plan, Question
from app.models.loading import create_engine
from app.models.source import source_of
from app.models.weights import engine_scheme, load_model
from app.settings import ModelSettings

TOLERANCES = {"nf4": 0.02, "int4": 0.03, "int8": 0.06}  # of logits to transformers' own; int8 rounds inputs by what else is in a step
SLOTS, CONTEXT, STEP_TOKENS = 16, 2048, 512
MEMORY_TOLERANCE = 0.1


def settings_of(folder: Path, device: str, quantize: str, **changes: Any) -> ModelSettings:
    sizes = {"slots": SLOTS, "context": CONTEXT, "step_tokens": STEP_TOKENS, **changes}
    return ModelSettings(path=str(folder), device=device, dtype="bfloat16", quantize=quantize, **sizes)


def bitsandbytes_config(scheme: str) -> BitsAndBytesConfig:
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=scheme, bnb_4bit_compute_dtype=torch.bfloat16)


def own_model(folder: Path, device: str, scheme: str) -> Any:
    """transformers' model with the same rounded weights: by bitsandbytes, or dequantized in every call."""
    if scheme == "int4":
        settings = settings_of(folder, device, scheme)
        model = load_model(source_of(str(folder)), settings, torch.device(device))
        if (rounded := engine_scheme(settings, torch.device(device))) != "none":
            quantize_layers(model, rounded)
        return model
    config = bitsandbytes_config(scheme)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device}, quantization_config=config).eval()


def check_logits(report: Report, folder: Path, device: str, scheme: str) -> None:
    with report.check(f"{scheme}: logits are those of transformers with the same layers") as found:
        prompts = [random_tokens(random.Random(length), length) for length in (60, 200)]  # int4 multiplies few rows otherwise than many
        own = own_model(folder, device, scheme)
        expected = [logits_of(own, prompt) for prompt in prompts]
        del own
        release()
        engine, _ = create_engine(settings_of(folder, device, scheme, slots=4, context=512))
        flat = engine.performer
        for prompt, logits in zip(prompts, expected, strict=True):
            found[f"error_{len(prompt)}_tokens"] = error = error_of(flat.head(flat.forward_uncached(list(prompt))), logits)
            assert error <= TOLERANCES[scheme]
        answers = tokens_of(running.run(engine, [ask(str(seed), random_tokens(random.Random(seed), 40)) for seed in range(4)]))
        assert len(answers) == 4


def check_memory(report: Report, folder: Path, device: str, scheme: str) -> None:
    """What this process takes of the card, full to its limits, against the estimate; and its weights and cache against the ledger."""
    with report.check(f"{scheme}: memory is what the ledger and the estimate say, within {MEMORY_TOLERANCE:.0%}") as found:
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        engine, facts = create_engine(settings_of(folder, device, scheme))
        kept = torch.cuda.memory_allocated() - allocated
        torch.cuda.reset_peak_memory_stats()
        fill(engine)
        peak = torch.cuda.max_memory_allocated() - allocated
        need = Plan(Question(str(folder), scheme, "bfloat16", CONTEXT, SLOTS, STEP_TOKENS)).need("cuda")
        declared = facts.weights.bytes + need.cache
        found.update(
            kept_bytes=kept,
            declared_bytes=declared,
            peak_bytes=peak,
            estimated_bytes=need.total - need.overhead,
            reserved_bytes=torch.cuda.memory_reserved(),
            weights_estimated=need.weights.total(),
            weights_declared=facts.weights.bytes,
        )
        assert abs(declared / kept - 1) <= MEMORY_TOLERANCE, "weights and cache are not what the ledger declares"
        assert abs((need.total - need.overhead) / peak - 1) <= MEMORY_TOLERANCE, "the peak is not what the estimate says"


def check_overhead(report: Report, before: int | None) -> None:
    """What the process takes beside torch's tensors: the estimate counts 500 MiB for it."""
    used = card_used()
    if before is None or used is None:
        report.skip("memory of the CUDA context", "the driver does not tell what is used")
        return
    report.measure("memory of the CUDA context", bytes=used - before - torch.cuda.memory_reserved(), estimated_bytes=500 * 2**20)


def fill(engine: Engine) -> None:
    """Steps as large as they get: a text to score, a prompt whose tokens' probabilities are asked for, all slots sampling."""
    tokens, sampling = min(engine.limits.step_tokens, engine.limits.context - 8), SamplingParams(temperature=1.0)
    jobs = [Score("text", (2,) * tokens, (Window(0, tokens, 1),)), Generate("prompt", (2,) * tokens, 4, sampling, prompt_logprobs=0)]
    jobs += [Generate(f"s-{index}", (2 + index,) * 8, 8, sampling, ignore_eos=True) for index in range(1, engine.limits.slots)]
    running.run(engine, jobs)


def check_refusal(report: Report, folder: Path, device: str) -> None:
    with report.check("more slots than fit are refused with numbers") as found:
        try:
            create_engine(settings_of(folder, device, "none", slots=1024, context=ONE_B.context))
        except SetupError as error:
            assert "would fit" in error.message
            found["message"] = error.message
        else:
            raise AssertionError("1024 slots were accepted")


def check_survival(report: Report, folder: Path, device: str) -> None:
    """A step for which no memory is left fails its requests with an error that says so; one that waits, and the next, are answered."""
    with report.check("out of memory in a step: its requests fail, one that waits is answered, the engine goes on"):
        engine, _ = create_engine(settings_of(folder, device, "none", slots=4))
        expected = tokens_of(running.run(engine, [ask("before", (5,) * 20)]))["before"]
        total = torch.cuda.get_device_properties(device).total_memory
        release()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**20) / total)
        try:
            engine.submit(Score("large", (7,) * STEP_TOKENS, (Window(0, STEP_TOKENS, 1),)))
            for id in ("0", "1", "2", "3", "waiting"):  # the last one gets no slot
                engine.submit(ask(id, (5,) * 20))
            events = engine.step()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        failures = {event.id: event.error.message for event in events if isinstance(event, Failed)}
        assert set(failures) == {"large", "0", "1", "2", "3"} and "out of memory" in failures["large"]
        assert tokens_of(running.run(engine, []))["waiting"] == expected and engine.idle
        assert tokens_of(running.run(engine, [ask("after", (5,) * 20)]))["after"] == expected


def run(report: Report, options: Namespace, shape: Shape | None = None) -> None:
    root, on_card, before = options.scratch or Path(tempfile.mkdtemp()), options.device != "cpu", card_used()
    shape = shape or (ONE_B if on_card else TINY)
    folder = save_llama(shape, root / "one-b", torch.device(options.device))
    release()
    for scheme in TOLERANCES if on_card else ("nf4", "int4"):  # on a CPU, int8 is not bitsandbytes' here
        check_logits(report, folder, options.device, scheme)
        release()
    if not on_card:
        report.skip("4-bit layers, memory, refusal and survival", "they need a card")
        return
    check_overhead(report, before)
    for part in (fourbit, mixtures):
        part.run(report, torch.device(options.device))
        release()
    check_survival(report, folder, options.device)
    release()
    check_refusal(report, folder, options.device)
    for scheme in ("none", *TOLERANCES):
        release()
        check_memory(report, folder, options.device, scheme)
