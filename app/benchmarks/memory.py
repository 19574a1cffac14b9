"""Prints, as a JSON line, the memory that the engine's ledger declares for a model, and the resident memory of the process that loads it.

    python -m app.benchmarks.memory --model models/storyteller --slots 8 --context 1024

The resident memory grows further with the first conversations: the operating system gives pages of the KV cache when they are first
written. So `peak_bytes` is the most that was resident while every page was written and the largest steps were computed, without what the
load took. With `--full` what `app.estimate` says of the same settings stands beside it: `estimated_bytes`, known before anything was
loaded, against `resident_bytes`. Linux only.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from app.benchmarks.engine import QUANTIZATIONS, resident_bytes
from app.engine import flat
from app.engine.capacity import ledger_of
from app.engine.engine import Engine
from app.engine.ledger import Ledger
from app.engine.request import Generate, SamplingParams, Score, Window
from app.errors import LitmusError
from app.estimate.plan import Plan, Question
from app.estimate.process import process_bytes
from app.models.heap import release_freed
from app.models.loading import create_engine
from app.settings import ModelSettings, prepare_environment


def measure(settings: ModelSettings) -> dict[str, Any]:
    """Load the model and compare. `context_bytes` counts a window for long texts beside the slots; the observer has only that one."""
    ledgers: list[Ledger] = []

    def recorded(*args: Any) -> Ledger:
        ledgers.append(ledger_of(*args))
        return ledgers[-1]

    before = process_bytes(settings.path, settings.quantize)
    with patch.object(flat, "ledger_of", recorded):
        engine, facts = create_engine(settings)
    cache = sum(tensor.nbytes for tensor in engine.performer.attention.slots.tensors)
    return {
        "kind": "footprint",
        "slots": facts.slots,
        "context": facts.context,
        "dtype": facts.dtype,
        "observer": facts.observer,
        "weight_bytes": sum(ledger.weights for ledger in ledgers),
        "activation_bytes": max(ledger.activations for ledger in ledgers),
        "slot_bytes": cache // facts.slots,
        "context_bytes": cache + sum(ledger.text for ledger in ledgers),
        "process_bytes": before,
        "loaded_bytes": resident_bytes(),
        "peak_bytes": peak_bytes(engine),
    }


def compare(settings: ModelSettings) -> dict[str, Any]:
    """Estimate, load, fill, and compare."""
    process = process_bytes(settings.path, settings.quantize)
    sizes = (settings.context, settings.slots or 1, settings.step_tokens)
    question = Question(settings.path, settings.quantize, settings.dtype, *sizes, process=process, observer=settings.observer_path)
    question = replace(question, cache_tokens=settings.cache_tokens)
    need = Plan(question).need("cpu")
    engine, facts = create_engine(settings)
    peak = peak_bytes(engine)
    return {
        "kind": "estimate",
        "slots": facts.slots,
        "context": facts.context,
        "dtype": facts.dtype,
        "quantize": facts.quantize,
        "weights_bytes": need.weights.total(),
        "cache_bytes": need.cache,
        "activation_bytes": need.activations,
        "overhead_bytes": need.overhead,
        "estimated_bytes": need.total,
        "resident_bytes": peak,
        "difference": round(need.total / peak - 1, 4),
    }


def peak_bytes(engine: Engine) -> int:
    """The most that this process has resident while every page of the KV cache is written, and steps run that are as large as they get: a
    text to score, a prompt whose tokens' probabilities are asked for, and all slots sampling.
    """
    for model in (engine.performer, engine.observer):
        for cache in () if model is None else (*model.attention.slots.tensors, *model.attention.texts.tensors):
            cache.fill_(0)
    release_freed()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    tokens, sampling = min(engine.limits.step_tokens, engine.limits.context - 8), SamplingParams(temperature=1.0)
    engine.submit(Score("text", (1,) * tokens, (Window(0, tokens, 1),), engine.observer is not None))
    engine.submit(Generate("prompt", (1,) * tokens, 4, sampling, prompt_logprobs=0))
    for index in range(1, engine.limits.slots):
        engine.submit(Generate(f"sample-{index}", (index,) * 8, 8, sampling, ignore_eos=True))
    while not engine.idle:
        engine.step()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.memory", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--full", action="store_true", help="compare with what app.estimate says")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    settings = ModelSettings(
        path=args.model,
        quantize=args.quantize,
        dtype=args.dtype,
        device=args.device,
        slots=args.slots,
        context=args.context,
        cache_tokens=args.slots * args.context,  # a whole context for each
    )
    try:
        record = compare(settings) if args.full else measure(settings)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main(sys.argv[1:]))
