"""The experts of a mixture in 4-bit groups on the card: outputs of Triton's kernel against the dequantized weights, in a CUDA graph too,
and their time beside torch's product of all experts in bfloat16. Then a tiny mixture, rounded to int4.
"""

import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gpu.report import Report
from gpu.running import error_of, logits_of, random_tokens, timed
from gpu.shapes import save_tiny

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.cudaexperts import CudaExperts, PackedProjection, PlainProjection, ends_of, multiply_plainly, use_kernel
from app.engine.experts import Routes, set_routes
from app.engine.grouped import FLOAT_4, GROUP_FORMAT, GroupedWeights
from app.models.source import source_of
from app.models.weights import load_model
from app.settings import ModelSettings

SHAPES = {"GPT-OSS 20B": (32, 4, 2880, 5760), "Qwen3 30B-A3B": (128, 8, 2048, 1536)}  # experts, chosen ones, inputs, outputs
FORMS = {"int4": GROUP_FORMAT, "MXFP4": FLOAT_4}
TOKENS = (1, 8, 32, 128, 2048)
TOLERANCE = 0.01  # of outputs, relative to their norm
MODEL_TOLERANCE = 0.05  # of logits


def projection_of(shape: str, form: str, device: torch.device) -> PackedProjection:
    """Random levels, made on the card expert by expert."""
    experts, _, inputs, outputs = SHAPES[shape]
    torch.manual_seed(0)

    def unpack() -> GroupedWeights:
        levels = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, device=device)
        scale = torch.rand(outputs, inputs // 32, device=device) / 100
        return GroupedWeights(levels, scale, -(8 if form == "int4" else 12) * scale, 4, FORMS[form].table)

    layer: Any = SimpleNamespace(
        unpack=unpack, out_features=outputs, in_features=inputs, group_format=FORMS[form], dtype=torch.bfloat16, bias=None
    )
    return PackedProjection([(layer,) for _ in range(experts)], False)


def rows_of(shape: str, tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted rows of so many tokens, each with experts of its own choice, and where those of each expert end."""
    experts, chosen, inputs, _ = SHAPES[shape]
    numbers = torch.stack([torch.randperm(experts)[:chosen] for _ in range(tokens)]).flatten().sort().values.to(device)
    return torch.randn(len(numbers), inputs, device=device).bfloat16(), ends_of(numbers, experts)


@torch.inference_mode()
def check_kernel(report: Report, shape: str, form: str, device: torch.device) -> None:
    with report.check(f"{shape}, {form}: Triton's kernel multiplies by the experts' weights, in a graph too") as found:
        packed = projection_of(shape, form, device)
        use_kernel([packed])
        assert packed.kernel is not None, "it is not used; the log says why"
        for tokens in TOKENS:
            x, ends = rows_of(shape, tokens, device)
            expected = multiply_plainly(packed, x, ends)
            found[f"error_{tokens}_tokens"] = error_of(packed(x, ends), expected)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = packed(x, ends)
            out.zero_()
            graph.replay()
            found[f"error_{tokens}_tokens_recorded"] = error_of(out, expected)
        assert max(found.values()) <= TOLERANCE


@torch.inference_mode()
def measure_tokens(report: Report, shape: str, form: str, device: torch.device) -> None:
    """Milliseconds of one projection of all experts: packed, and by torch's product in bfloat16; and the weights that were read."""
    packed = projection_of(shape, form, device)
    use_kernel([packed])
    count, outputs = SHAPES[shape][0], packed.outputs
    plain = PlainProjection([(torch.nn.Linear(packed.inputs, outputs, False, device, torch.bfloat16),) for _ in range(count)], False)
    for tokens in TOKENS:
        x, ends = rows_of(shape, tokens, device)
        read = int((ends.diff(prepend=ends.new_zeros(1)) > 0).sum())
        times = {"packed_ms": 1000 * timed(lambda x=x, ends=ends: packed(x, ends), device)}
        times["bfloat16_ms"] = 1000 * timed(lambda x=x, ends=ends: plain(x, ends), device)
        report.measure(
            f"{shape}, {form}: a projection for {tokens} tokens", experts_read=read, packed_bytes=read * packed.levels[0].nbytes, **times
        )


def check_model(report: Report, device: torch.device) -> None:
    with report.check("GPT-OSS, int4: its experts stay in 4 bits, logits are those of its own weights") as found:
        folder = save_tiny("GPT-OSS", Path(tempfile.mkdtemp()))
        settings = ModelSettings(path=str(folder), device=str(device), dtype="bfloat16", quantize="int4")
        model, prompt = load_model(source_of(str(folder)), settings, device), random_tokens(random.Random(1), 60)
        set_routes(model, Routes)
        expected = logits_of(model, prompt)
        set_routes(model, lambda: None)
        flat = create_flat_model(model, CacheLimits(2, 512))
        mixtures = [module for module in flat.model.modules() if isinstance(module, CudaExperts)]
        kernels = [part.kernel for each in mixtures for part in (each.gate_up, each.down) if isinstance(part, PackedProjection)]
        assert len(kernels) == 2 * len(mixtures) > 0 and None not in kernels, "Triton's kernel is not used; the log says why"
        found["error"] = error_of(flat.head(flat.forward_uncached(list(prompt))), expected)
        assert found["error"] <= MODEL_TOLERANCE


def run(report: Report, device: torch.device) -> None:
    for shape in SHAPES:
        for form in FORMS:
            check_kernel(report, shape, form, device)
    check_model(report, device)
    for shape in SHAPES:
        measure_tokens(report, shape, "MXFP4" if shape.startswith("GPT") else "int4", device)
