"""Block types as written here, read by the gguf package."""

import gguf
import numpy as np
import pytest

from models.gguf import quantize_iq4_nl, quantize_q3_k, quantize_q6_k


def values() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
    made[0] = 0
    made[1, :32] = 0
    made[2, 32:64] *= 100
    return made


@pytest.mark.parametrize(
    ("function", "name", "size", "steps", "largest"),
    [(quantize_q6_k, "Q6_K", 210, 31, 127), (quantize_q3_k, "Q3_K", 110, 3.5, 31)],
)
def test_a_value_is_within_half_a_step_of_its_group(function, name: str, size: int, steps: float, largest: int) -> None:
    raw = function(values())
    assert raw.shape == (5, 2 * size) and raw.dtype == np.uint8
    read = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    blocks, errors = (np.abs(each).reshape(5, 2, 16, 16) for each in (values(), read - values()))
    step = blocks.max(-1, keepdims=True) / steps
    rounded_scale = step.max(-2, keepdims=True) / largest  # the scale of a group is a whole number of these, rounded upwards
    assert (errors <= 0.5 * (step + 1.01 * rounded_scale) + 1e-3 * blocks.max(-1, keepdims=True) + 1e-7).all()
    assert (read[0] == 0).all() and (read[1, :32] == 0).all()


def test_iq4_nl_takes_the_nearest_of_its_levels() -> None:
    raw = quantize_iq4_nl(values())
    assert raw.shape == (5, 16 * 18) and raw.dtype == np.uint8
    read = gguf.dequantize(raw, gguf.GGMLQuantizationType.IQ4_NL).reshape(5, 16, 32)
    blocks = values().reshape(5, 16, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    nearest = np.abs(blocks[..., None] - scale[..., None] * np.array(gguf.quants.IQ4_NL.kvalues)).min(-1)
    assert (np.abs(read - blocks) <= nearest + 1e-2 * np.abs(blocks).max(-1, keepdims=True)).all()
    assert (read[0] == 0).all() and (read[1, 0] == 0).all()
