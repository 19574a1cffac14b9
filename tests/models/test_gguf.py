"""Q6_K as written here, read by the gguf package."""

import gguf
import numpy as np

from models.gguf import quantize_q6_k


def test_q6_k_is_within_half_a_step_of_each_group() -> None:
    values = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
    values[0] = 0
    values[1, :16] = 0
    values[2, 16:32] *= 100
    raw = quantize_q6_k(values)
    assert raw.shape == (5, 2 * 210) and raw.dtype == np.uint8
    read = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q6_K)
    blocks, errors = (np.abs(each).reshape(5, 2, 16, 16) for each in (values, read - values))
    step = blocks.max(-1, keepdims=True) / 31
    rounded_scale = step.max(-2, keepdims=True) / 127  # the scale of a group is rounded to 8 bits, upwards
    assert (errors <= 0.5 * (step + 1.01 * rounded_scale) + 1e-3 * blocks.max(-1, keepdims=True) + 1e-7).all()
    assert (read[0] == 0).all() and (read[1, :16] == 0).all()
