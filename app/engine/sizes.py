"""How many bytes a layer takes in each form in which it is kept: dense, packed for the compiled kernel, or by bitsandbytes.

Arithmetic of the shapes that `app.engine.packing`, `app.engine.linear` and bitsandbytes make. Knows no tensor and no model.
"""

WORD_BYTES, HALF_BYTES, FLOAT_BYTES = 4, 2, 4
BNB_BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit layers
EXPERT_BLOCK = 64  # inputs of an expert on CUDA that are packed together


def padded(outputs: int, columns: int) -> int:
    """Outputs in whole blocks of the kernel."""
    return -(-outputs // columns) * columns


def tiled_bfloat16(outputs: int, inputs: int, columns: int) -> int:
    """As `packing.pack_bfloat16`: inputs in pairs."""
    return padded(outputs, columns) * (inputs + inputs % 2) * HALF_BYTES


def tiled_groups(outputs: int, inputs: int, bits: int, group: int, columns: int) -> int:
    """As `packing.pack_grouped`: the levels, and a word with scale and minimum for each group."""
    return padded(outputs, columns) * (inputs // group) * (group * bits // 32 + 1) * WORD_BYTES


def torch_int4(outputs: int, inputs: int, group: int, itemsize: int) -> int:
    """As torch's own int4 kernel keeps it: two levels a byte, and scale and zero for each group."""
    return outputs * inputs // 2 + inputs // group * outputs * 2 * itemsize


def packed_experts(outputs: int, inputs: int, is_even: bool) -> int:
    """An expert as `cudaexperts.PackedProjection` keeps it: inputs in whole blocks, two levels a byte, and for each group a scale and, of
    even levels, a minimum.
    """
    groups = 2 * -(-inputs // EXPERT_BLOCK)
    return outputs * (groups * EXPERT_BLOCK // 4 + groups * (2 if is_even else 1) * HALF_BYTES)


def bnb_4bit(outputs: int, inputs: int) -> int:
    """bitsandbytes' nf4 and fp4, where its own layer stays: two levels a byte, and a float32 scale for each block."""
    weights = outputs * inputs
    return -(-weights // 2) + -(-weights // BNB_BLOCK) * FLOAT_BYTES


def bnb_8bit(outputs: int, inputs: int) -> int:
    """bitsandbytes' LLM.int8: a byte a weight, and a float32 scale for each output."""
    return outputs * inputs + outputs * FLOAT_BYTES
