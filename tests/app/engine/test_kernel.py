"""The compiled kernel's products and norms against torch, including edge cases."""

import itertools
from dataclasses import replace

import pytest
import torch
from driving import kernel_or_skip
from hypothesis import given, settings
from hypothesis import strategies as st
from older_kernels import OLDER
from torch.nn import functional as F

from app.engine.grouped import GroupedWeights, GroupFormat
from app.engine.kernel import Epilogue, Kernel, kernel
from app.engine.packing import pack_bfloat16, pack_grouped, pad_bias, unpack_rows

TABLE = (0, 3, 9, 30, 55, 79, 100, 118, 129, 141, 153, 166, 181, 197, 217, 255)
FORMATS = [GroupFormat(4, 32), GroupFormat(4, 16), GroupFormat(4, 32, TABLE), GroupFormat(8, 32), GroupFormat(8, 16)]
NEEDS_16 = (GroupFormat(8, 16), 8)  # inputs of 8 bits are not supported there


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([70, 84, 85, 99, 140, 141, 300]),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 150),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "swish"]),
    binary_op=st.sampled_from(["none", "mul", "add"]),
)
def test_linear_matches_torch_for_any_shape_and_epilogue(
    built: Kernel, rows: int, inputs: int, outputs: int, bias: bool, activation: str, binary_op: str
) -> None:
    torch.manual_seed(rows + 1000 * inputs)
    x, weight, operand = (torch.randn(size).bfloat16() for size in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    shift = torch.randn(outputs).bfloat16() if bias else None
    epilogue = Epilogue(outputs, None if shift is None else pad_bias(shift, built.columns), activation, binary_op, operand)
    result = built.linear(x, pack_bfloat16(weight, built.columns), epilogue)
    expected = F.linear(x.float(), weight.float(), None if shift is None else shift.float())
    expected = F.silu(expected) if activation == "swish" else expected
    expected = {"none": expected, "mul": expected * operand.float(), "add": expected + operand.float()}[binary_op]
    torch.testing.assert_close(result.float(), expected, atol=1e-3, rtol=2**-7)


@pytest.mark.parametrize("chosen", [False, True], ids=["float32 products", "dot products"])
def test_both_ways_to_multiply_bfloat16_are_right_and_independent_of_other_rows(chosen: bool) -> None:
    native = kernel_or_skip()
    if not native.has_dot_products:
        pytest.skip("this processor has no AVX512-BF16")
    x, weight = torch.randn(100, 62).bfloat16(), torch.randn(131, 62).bfloat16()
    packed = pack_bfloat16(weight, native.columns)
    native.choose_dot_products(chosen)
    try:
        whole = native.linear(x, packed, Epilogue(131))
        torch.testing.assert_close(whole.float(), x.float() @ weight.float().T, atol=1e-3, rtol=2**-7)
        for size in (1, 2, 3, 14, 99):
            assert torch.equal(torch.cat([native.linear(part, packed, Epilogue(131)) for part in x.split(size)]), whole)
    finally:
        kernel.cache_clear()
        kernel()  # chooses as before, by what is kept


@pytest.mark.parametrize("built", ["native", *OLDER], indirect=True)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([84, 141]),
    groups=st.integers(1, 5),
    kind=st.sampled_from([(each, input_bits) for each in FORMATS for input_bits in (8, 16) if (each, input_bits) != NEEDS_16]),
    outputs=st.integers(1, 150),
    spread=st.sampled_from([1e-36, 1e-3, 1.0, 1e30]),
    weight_spread=st.sampled_from([2.0**-20, 1.0, 2.0**17]),  # powers of two, so that float16 holds the scales exactly
    binary_op=st.sampled_from(["none", "mul", "add"]),
)
def test_groups_are_multiplied_by_rounded_inputs(
    built: Kernel,
    rows: int,
    groups: int,
    kind: tuple[GroupFormat, int],
    outputs: int,
    spread: float,
    weight_spread: float,
    binary_op: str,
) -> None:
    torch.manual_seed(rows + 1000 * outputs)
    (bits, size, table), input_bits = kind
    limit = 127 if input_bits == 8 else 127 * 256
    x, operand = (spread * torch.randn(rows, groups, size)).bfloat16(), torch.randn(rows, outputs).bfloat16()
    x[rows // 2, 0] = 0
    levels = torch.randint(0, 1 << bits, (outputs, groups * size), dtype=torch.uint8)
    scale, minimum = (torch.rand(outputs, groups) + 0.5).half().float(), torch.randn(outputs, groups).half().float()
    weights = GroupedWeights(levels, weight_spread * scale / (1 << (bits if table is None else 8)), weight_spread * minimum, bits, table)
    largest = x.float().abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 1e-30, torch.tensor(float(limit)) / largest, 0)  # limit / largest would round twice
    rounded = (x.double() * inverse.double()).round().float() * (largest / limit)  # exact in double, so ties round as in the kernel
    expected = rounded.view(rows, -1) @ weights.dequantize().T
    expected = {"none": expected, "mul": expected * operand.float(), "add": expected + operand.float()}[binary_op]
    packed = replace(pack_grouped(weights, built.columns), input_bits=input_bits)
    result = built.linear(x.view(rows, -1), packed, Epilogue(outputs, binary_op=binary_op, operand=operand))
    torch.testing.assert_close(result.float(), expected, atol=2e-2 * max(spread * weight_spread, 1e-2), rtol=2**-7)


def test_extreme_levels_do_not_overflow(built: Kernel) -> None:
    """Largest inputs and levels of one sign: the sums are the largest that can be."""
    x = torch.full((7, 64), 1.0).bfloat16()
    for (bits, size, table), input_bits in itertools.product(FORMATS, (8, 16)):
        if (GroupFormat(bits, size, table), input_bits) == NEEDS_16:
            continue
        levels = torch.full((5, 64), (1 << bits) - 1, dtype=torch.uint8)
        weights = GroupedWeights(levels, torch.ones(5, 64 // size), torch.zeros(5, 64 // size), bits, table)
        largest = (1 << bits) - 1 if table is None else table[-1]
        expected = torch.full((7, 5), 64.0 * largest).bfloat16()
        for sign in (1, -1):
            packed = replace(pack_grouped(weights, built.columns), input_bits=input_bits)
            assert torch.equal(built.linear(sign * x, packed, Epilogue(5)), sign * expected)


@pytest.mark.parametrize("groups", [3, 6])
def test_rows_of_packed_bytes_can_be_read_back(built: Kernel, groups: int) -> None:
    levels = torch.randint(0, 256, (77, 96), dtype=torch.uint8)
    weights = GroupedWeights(levels, torch.rand(77, groups).half().float(), torch.randn(77, groups).half().float(), 8)
    rows = torch.tensor([0, 76, 31, 32, 33, 0])
    unpacked = unpack_rows(pack_grouped(weights, built.columns), rows)
    torch.testing.assert_close(unpacked, weights.dequantize()[rows], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("input_bits", [8, 16])
@pytest.mark.parametrize("non_finite", [float("nan"), float("inf"), float("-inf")])
def test_rounding_inputs_keeps_nan_and_infinity_visible(built: Kernel, non_finite: float, input_bits: int) -> None:
    x = torch.ones(3, 64).bfloat16()
    x[1, 40] = non_finite
    weights = GroupedWeights(torch.full((5, 64), 1, dtype=torch.uint8), torch.ones(5, 2), torch.zeros(5, 2), 4)
    result = built.linear(x, replace(pack_grouped(weights, built.columns), input_bits=input_bits), Epilogue(5))
    assert bool(result[1].isnan().all()) and torch.equal(result[::2], torch.full((2, 5), 64.0).bfloat16())


def test_a_rows_result_does_not_depend_on_the_other_rows(built: Kernel) -> None:
    x, weight = torch.randn(150, 96).bfloat16(), torch.randn(200, 96).bfloat16()
    levels, scale, offset = torch.randint(0, 16, (200, 96)), torch.rand(200, 3), torch.randn(200, 3)
    for packed in (
        pack_bfloat16(weight, built.columns),
        *(
            replace(pack_grouped(GroupedWeights(levels.to(torch.uint8), scale, offset, bits, table), built.columns), input_bits=input_bits)
            for bits, table, input_bits in ((4, None, 8), (4, None, 16), (4, TABLE, 8), (4, TABLE, 16), (8, None, 8), (8, None, 16))
        ),
    ):
        whole = built.linear(x, packed, Epilogue(200))
        for size in (1, 2, 3, 14, 20, 83, 99):
            parts = [built.linear(part, packed, Epilogue(200)) for part in x.split(size)]
            assert torch.equal(torch.cat(parts), whole), size


def test_extreme_inputs_and_ties_round_as_in_torch(built: Kernel) -> None:
    x = torch.tensor([[-3e38], [-90.0], [-1e-38], [0.0], [90.0], [3e38], [float("inf")], [float("nan")]]).bfloat16()
    result = built.linear(x, pack_bfloat16(torch.ones(1, 1).bfloat16(), built.columns), Epilogue(1, activation="swish"))
    torch.testing.assert_close(result, F.silu(x), equal_nan=True, atol=1e-30, rtol=0.01)
    ties = torch.tensor([[1 + 2**-8], [1 + 3 * 2**-8], [-(1 + 2**-8)]])  # half-way between two bfloat16: rounded to the even one
    parts = torch.cat([ties.bfloat16(), (ties - ties.bfloat16()).bfloat16()], 1)
    rounded = built.linear(parts, pack_bfloat16(torch.ones(1, 2).bfloat16(), built.columns), Epilogue(1))
    assert torch.equal(rounded, ties.bfloat16())


@pytest.mark.parametrize("size", [1, 7, 16, 64, 100, 576])
def test_rms_norm_matches_torch(built: Kernel, size: int) -> None:
    x, weight = torch.randn(3, 5, size).bfloat16() * 3, torch.randn(size).bfloat16()
    expected = F.rms_norm(x.float(), (size,), weight.float(), 1e-5)
    torch.testing.assert_close(built.rms_norm(x, weight, 1e-5).float(), expected, atol=1e-6, rtol=2**-7)


def test_the_number_of_threads_does_not_change_results(built: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    x, packed = torch.randn(100, 64).bfloat16(), pack_bfloat16(torch.randn(333, 64).bfloat16(), built.columns)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        results.append(built.linear(x, packed, Epilogue(333)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
