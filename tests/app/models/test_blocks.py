"""GGUF's block types against the `gguf` package's own dequantization, on random blocks."""

import gguf
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from app.models.blocks import TYPES, group_format, unpack

HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # bytes at which a float16 stands


@pytest.mark.parametrize("name", TYPES)
def test_every_block_type_is_unpacked_exactly(name: str) -> None:
    size = TYPES[name][0]
    blocks = np.random.default_rng(0).integers(0, 256, (7, 4, size), dtype=np.uint8)
    if name == "MXFP4":
        blocks[..., 0] = 104 + blocks[..., 0] % 40  # powers of two that a float16 has
    for at in HALVES.get(name, (0,)) if name != "MXFP4" else ():
        blocks[..., at + 1] &= 0x3B  # neither infinite nor NaN
    raw = blocks.reshape(7, -1)
    weights = unpack(torch.from_numpy(raw), name)
    expected = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[name]))
    torch.testing.assert_close(weights.dequantize(), expected, atol=1e-6, rtol=1e-6)
    assert weights.format == group_format(name) and int(weights.levels.max()) < 1 << weights.bits


@pytest.mark.parametrize("name", TYPES)
def test_blocks_are_unpacked_on_the_device_where_they_are(name: str) -> None:
    """A fake tensor refuses an operand of another device, as a GPU does."""
    with FakeTensorMode():
        weights = unpack(torch.empty(2, 3 * TYPES[name][0], dtype=torch.uint8, device="meta"), name)
    assert {weights.levels.device.type, weights.scale.device.type, weights.minimum.device.type} == {"meta"}
