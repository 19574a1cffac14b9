"""How fast the engine decodes and reads prompts, as shares of what this card measurably can: an 8B shape, in bfloat16, nf4 or int4."""

import random
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu.betweens import measure_betweens
from gpu.marks import EIGHT_B, TINY, Shape, bandwidth_share, decode_bytes, flops_share, prefill_flops
from gpu.report import Report
from gpu.running import ask, release, timed, wait
from gpu.shapes import save_llama
from torch.autograd import DeviceType

from app.benchmarks.engine import random_prompts, rates, run_engine
from app.engine.engine import Engine
from app.engine.graphs import Launched
from app.models.loading import create_engine
from app.settings import ModelSettings

SLOTS = (1, 8, 32, 128)
PROMPT, NEW = 128, 64
CONTEXT, STEP_TOKENS = 1024, 2048
PROFILED_STEPS = 8


def measure_bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy within the memory, bytes read and written counted."""
    size = 2**32 if device.type == "cuda" else 2**24
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / timed(lambda: target.copy_(source), device)


def measure_flops(device: torch.device) -> float:
    """Operations a second of a product of two bfloat16 matrices of random numbers."""
    side = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / timed(lambda: left @ right, device)


def weights_read(engine: Engine) -> int:
    """Bytes of the weights of which a step reads all: without the embedding, of which it reads a few rows."""
    embedding: Any = engine.performer.model.get_input_embeddings()
    return engine.performer.weights.bytes - embedding.weight.nbytes


@contextmanager
def waiting() -> Iterator[list[float]]:
    """Seconds that the host waited for each recorded step while this is open: the rest of a step it was at work."""
    waits: list[float] = []
    own = Launched.tokens

    def tokens(self: Launched) -> list[list[int]]:
        begin = time.perf_counter()
        found = own(self)
        waits.append(time.perf_counter() - begin)
        return found

    Launched.tokens = tokens  # type: ignore[method-assign]
    try:
        yield waits
    finally:
        Launched.tokens = own  # type: ignore[method-assign]


def measure_decode(report: Report, engine: Engine, kv_token: int, bandwidth: float, name: str, sizes: Sequence[int]) -> None:
    for slots in sizes:
        if slots > engine.limits.slots or not report.has(f"{name}: decode at {slots} slots", 8):
            continue
        with report.check(f"{name}: decode at {slots} slots") as found:
            vocabulary = range(2, engine.performer.vocabulary)
            run_engine(engine, slots, random_prompts(random.Random(0), slots, PROMPT, vocabulary), 4)
            with waiting() as waits:
                trace = run_engine(engine, slots, random_prompts(random.Random(slots), slots, PROMPT, vocabulary), NEW)
            per_s = rates(trace, slots * PROMPT).decode_per_s
            assert per_s is not None
            must_read = decode_bytes(weights_read(engine), kv_token, slots, PROMPT + NEW / 2)
            found.update(
                tokens_per_s=per_s,
                step_ms=1000 * slots / per_s,
                gb_per_step=must_read / 1e9,
                bandwidth_share=bandwidth_share(must_read, slots, per_s, bandwidth),
                recorded_steps=len(waits),
            )
            if waits:
                found["host_ms"] = 1000 * (slots / per_s - statistics.median(waits))


def measure_prefill(report: Report, engine: Engine, shape: Shape, peak: float, name: str) -> None:
    """Prompts of 512 tokens: one at a time, so steps of 512 rows, and four in a step of 2,048."""
    length = min(512, shape.context // 2)
    for at_once in (1, 4):
        if not report.has(f"{name}: prefill", 8):
            return
        with report.check(f"{name}: prefill, {at_once} prompts of {length} tokens at once") as found:
            prompts = random_prompts(random.Random(at_once), 4 * at_once, length, range(2, engine.performer.vocabulary))
            run_engine(engine, at_once, prompts[:at_once], 1)
            trace = run_engine(engine, at_once, prompts, 1)
            seconds = max(times[-1] for times in trace.tokens_s) - trace.begin_s
            flops = prefill_flops(shape, len(prompts), length)
            found.update(
                tokens_per_s=len(prompts) * length / seconds,
                tflops=flops / seconds / 1e12,
                flops_share=flops_share(flops, seconds, peak),
            )


def profile_steps(report: Report, engine: Engine, name: str) -> None:
    """Where a decode step of 32 rows spends its time: on the host, and in which kernels."""
    rows = min(32, engine.limits.slots)
    with report.check(f"{name}: {PROFILED_STEPS} decode steps of {rows} rows, by kernel") as found:
        for index in range(rows):
            engine.submit(ask(f"profile-{index}", (3 + index,) * 16, new_tokens=PROFILED_STEPS + 24))
        for _ in range(8):
            engine.step()
        wait(engine.performer.device)
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiled:
            begin = time.perf_counter()
            for _ in range(PROFILED_STEPS):
                engine.step()
            wait(engine.performer.device)
            seconds = time.perf_counter() - begin  # the profiler's own cost included
        kernels = [event for event in profiled.key_averages() if event.device_type == DeviceType.CUDA]  # not what launched them
        kernels.sort(key=lambda event: -event.self_device_time_total)
        found.update(
            step_ms=1000 * seconds / PROFILED_STEPS,
            kernels_ms=sum(event.self_device_time_total for event in kernels) / 1000 / PROFILED_STEPS,
            kernels_per_step=sum(event.count for event in kernels) / PROFILED_STEPS,
            longest=[[event.key[:60], round(event.self_device_time_total / 1000 / PROFILED_STEPS, 3)] for event in kernels[:8]],
        )
        for index in range(rows):
            engine.cancel(f"profile-{index}")
        while not engine.idle:
            engine.step()


def run(report: Report, options: Namespace, shape: Shape | None = None) -> None:
    device, root = torch.device(options.device), options.scratch or Path(tempfile.mkdtemp())
    shape = shape or (EIGHT_B if device.type == "cuda" else TINY)
    quantize = options.run.removeprefix("speed").removeprefix("-") or "none"
    name = f"{'8B' if shape is EIGHT_B else 'small'}, {'bfloat16' if quantize == 'none' else quantize}"
    bandwidth, peak = measure_bandwidth(device), measure_flops(device)
    report.measure("this card", copy_gb_per_s=bandwidth / 1e9, bfloat16_tflops=peak / 1e12)
    release()
    folder = root / "eight-b"
    with report.check("the random model is written") as found:
        begin = time.perf_counter()
        save_llama(shape, folder, device)
        found["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        found["write_s"] = time.perf_counter() - begin
    release()
    slots = max(SLOTS) if device.type == "cuda" else 8
    settings = ModelSettings(
        path=str(folder),
        device=options.device,
        dtype="bfloat16",
        quantize=quantize,
        slots=slots,
        context=min(CONTEXT, shape.context),
        step_tokens=STEP_TOKENS,
    )
    engine = None
    with report.check(f"{name}: it starts") as found:
        begin = time.perf_counter()
        engine, facts = create_engine(settings)
        found.update(start_s=time.perf_counter() - begin, weights_bytes=facts.weights.bytes, slots=facts.slots)
    if engine is None:
        return
    engine.drafter.is_on = False  # a drafted token is not a step of its own
    measure_decode(report, engine, shape.kv_bytes(), bandwidth, name, SLOTS)
    recorded, engine.recorded = engine.recorded, None
    if recorded is not None:
        measure_decode(report, engine, shape.kv_bytes(), bandwidth, f"{name}, not recorded", (1, 32))
    engine.recorded = recorded
    measure_prefill(report, engine, shape, peak, name)
    measure_betweens(report, engine, shape, name)
    profile_steps(report, engine, name)
