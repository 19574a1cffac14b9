"""What lies between the products of a layer: the time of Triton's kernels and of torch's operations, in a CUDA graph as in a step."""

from collections.abc import Callable

import torch
from gpu.marks import Shape
from gpu.report import Report
from gpu.running import timed

from app.engine.cudadecoder import CudaDecoder, Kernels, PlainKernels, Rotation, Target
from app.engine.engine import Engine
from app.engine.fused import FusedDecoder

TIMED_ROWS = (1, 32, 2048)
LAYERS = 8  # one after the other, as in a step


def parts(decoder: FusedDecoder, rows: int, shape: Shape, device: torch.device) -> dict[str, Callable[[Kernels], object]]:
    """Each does one thing for `LAYERS` layers."""
    norm = decoder.layers[0].input_norm

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device).to(norm.weight.dtype)

    x, added, gate, up = (numbers(rows, size) for size in (shape.hidden, shape.hidden, shape.ff, shape.ff))
    cos, sin = numbers(rows, decoder.dim), numbers(rows, decoder.dim)
    rotation = Rotation(numbers(rows, decoder.heads + 2 * decoder.kv_heads, decoder.dim), decoder.heads, cos, sin, None)
    places = torch.arange(rows, device=device)
    target = Target(numbers(rows, decoder.kv_heads, decoder.dim), numbers(rows, decoder.kv_heads, decoder.dim), places)
    return {
        "norm": lambda kernels: [kernels.norm(x, added, norm) for _ in range(LAYERS)],
        "rotate": lambda kernels: [kernels.rotate(rotation, target) for _ in range(LAYERS)],
        "gate": lambda kernels: [kernels.gate(gate, up) for _ in range(LAYERS)],
    }


def recorded(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return call
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@torch.inference_mode()
def measure_betweens(report: Report, engine: Engine, shape: Shape, name: str) -> None:
    """Microseconds for one layer. A layer has two norms."""
    decoder, device = engine.performer._decoder, engine.performer.device
    if decoder is None or not isinstance(decoder.on_cuda, CudaDecoder):
        report.skip(f"{name}: Triton's kernels", "they are not used; on a card the log says why")
        return
    for rows in TIMED_ROWS:
        calls, found = parts(decoder, rows, shape, device), {}
        for each, kernels in (("triton", decoder.on_cuda.kernels), ("torch", PlainKernels())):
            for part, call in calls.items():
                found[f"{part}_{each}_us"] = (
                    1e6 * timed(recorded(lambda call=call, kernels=kernels: call(kernels), device), device) / LAYERS
                )
        report.measure(f"{name}: between products, {rows} rows", **found)
