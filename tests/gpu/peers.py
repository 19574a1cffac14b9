"""transformers' own ways to generate, with the weights, prompts and numbers of tokens of `gpu.speed`: `generate`, and its continuous
batching manager, as it chooses by itself and with CUDA graphs.
"""

import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu.marks import EIGHT_B, TINY, Shape
from gpu.report import Report
from gpu.shapes import save_llama
from gpu.speed import NEW, PROMPT, SLOTS, STEP_TOKENS
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from app.benchmarks.engine import Prompt, cache_blocks, greedy, random_prompts, rates, run_generate, run_manager


def measure_generate(report: Report, model: Any, slots: int, prompts: Sequence[Prompt]) -> None:
    """Decoding alone is what 64 tokens take longer than one."""
    with report.check(f"generate, {slots} at once") as found:
        run_generate(model, prompts, 2)
        seconds = {}
        for tokens in (1, NEW):
            trace = run_generate(model, prompts, tokens)
            seconds[tokens] = trace.tokens_s[0][-1] - trace.begin_s
        found.update(tokens_per_s=slots * NEW / seconds[NEW], decode_tokens_per_s=slots * (NEW - 1) / (seconds[NEW] - seconds[1]))


def measure_manager(report: Report, model: Any, slots: int, prompts: Sequence[Prompt], graphs: bool | None) -> None:
    """Its cache has room for the requests, and its steps as many tokens as ours: left to itself, it would take most of the memory."""
    title = "continuous batching" if graphs is None else "continuous batching with CUDA graphs"
    with report.check(f"{title}, {slots} at once") as found:
        blocks = max(cache_blocks(slots, PROMPT + NEW), STEP_TOKENS // 256 + 2 * slots)  # fewer, and its graphs are not recorded
        config = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=STEP_TOKENS, use_cuda_graph=graphs)
        hints = WorkloadHints(max_prompt_length=PROMPT, max_generated_length=NEW, num_requests=slots)
        begin = time.perf_counter()
        with model.continuous_batching_context_manager(
            greedy(NEW), continuous_batching_config=config, workload_hints=hints, timeout=5
        ) as manager:
            run_manager(manager, [prompt[::-1] for prompt in prompts], 4)  # others, as it keeps the beginnings of prompts
            found["warm_up_s"] = time.perf_counter() - begin
            run = rates(run_manager(manager, prompts, NEW), slots * PROMPT)
            found.update(tokens_per_s=run.tokens_per_s, decode_tokens_per_s=run.decode_per_s, attention=model.config._attn_implementation)


def run(report: Report, options: Namespace, shape: Shape | None = None) -> None:
    device, root = torch.device(options.device), options.scratch or Path(tempfile.mkdtemp())
    shape = shape or (EIGHT_B if device.type == "cuda" else TINY)
    folder = save_llama(shape, root / "eight-b", device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device}).eval()
    kinds: list[bool | None] = [None, True] if device.type == "cuda" else [None]
    for slots in reversed(SLOTS) if device.type == "cuda" else (2,):
        prompts = random_prompts(random.Random(slots), slots, PROMPT, range(2, shape.vocabulary))
        if not report.has(f"{slots} at once", 10):
            continue
        measure_generate(report, model, slots, prompts)
        for graphs in kinds:
            if report.has(f"continuous batching, {slots} at once", 8):
                measure_manager(report, model, slots, prompts, graphs)
