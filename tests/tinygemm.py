"""torch's two operations for 4-bit layers on CUDA, by what their source (ATen's int4mm.cu, "tinygemm") describes, on a CPU."""

import pytest
import torch

from app.engine import int4
from app.engine.int4 import unpack_pairs

Packed = dict[int, torch.Tensor]  # the pairs that were packed, by the address of the result


def packed_as_torch_does(pairs: torch.Tensor, tiles: int) -> torch.Tensor:
    """Lane t of a tile of 8 outputs packs those bytes of output t / 4 that stand 4 apart from byte t % 4 on, two k-tiles in a word: the low
    halves (odd inputs) above the high ones, the first byte lowest.
    """
    outputs, steps = len(pairs) // 8, pairs.shape[1] // (8 * tiles)
    packed = torch.zeros(outputs, steps, 32, tiles // 2, dtype=torch.int64)
    for tile in range(outputs):
        for lane in range(32):
            row = pairs[tile * 8 + lane // 4].long()
            for step in range(steps):
                for word in range(tiles // 2):
                    first = (step * tiles + 2 * word) * 8 + lane % 4
                    for place, byte in enumerate(row[first : first + 16 : 4].tolist()):
                        packed[tile, step, lane, word] |= byte >> 4 << 4 * place | (byte & 15) << 16 + 4 * place
    return packed.to(torch.int32)  # the highest bit becomes the sign


def use_tinygemm(monkeypatch: pytest.MonkeyPatch) -> Packed:
    """Let a CPU have torch's operations for CUDA."""
    made: Packed = {}

    def convert(pairs: torch.Tensor, tiles: int) -> torch.Tensor:
        assert pairs.dtype == torch.uint8 and pairs.is_contiguous() and tiles in (2, 4, 8) and 2 * pairs.shape[1] % (16 * tiles) == 0
        packed = packed_as_torch_does(pairs, tiles)
        made[packed.data_ptr()] = pairs
        return packed

    def multiply(rows: torch.Tensor, packed: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
        levels = unpack_pairs(made[packed.data_ptr()]).float().unflatten(-1, (-1, group))
        assert rows.dtype == scales.dtype == torch.bfloat16 and rows.is_contiguous() and scales.is_contiguous()
        assert scales.shape == (levels.shape[1], len(levels), 2)
        scale, zero = scales.float().permute(2, 1, 0)[..., None]
        return (rows.float() @ ((levels - 8) * scale + zero).bfloat16().float().flatten(1).T).bfloat16()

    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", convert)
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", multiply)
    monkeypatch.setattr(int4, "runs_on", lambda device: True)
    return made
