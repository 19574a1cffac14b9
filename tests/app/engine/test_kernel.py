"""The compiled kernel against torch, including edge cases."""

from dataclasses import replace

import pytest
import torch
from driving import kernel_or_skip
from hypothesis import given, settings
from hypothesis import strategies as st
from older_kernels import OLDER
from torch.nn import functional as F

from app.engine.grouped import GroupedWeights
from app.engine.kernel import Epilogue, Kernel, kernel
from app.engine.packing import pack_bfloat16, pack_grouped, pack_levels, pad_bias, unpack_rows
from app.engine.rows import DecodeRows, PrefillRows

PAGE = 32  # tokens


def in_bytes(plain: torch.Tensor) -> torch.Tensor:
    """Keys or values `[..., dim]` as the cache has them in 8 bits: `[..., dim + 4]`."""
    largest = plain.float().abs().amax(-1, keepdim=True)
    levels = (plain.float() * (torch.tensor(127.0) / largest)).round()
    return torch.cat([levels.to(torch.int8), (largest / 127).view(torch.int8)], -1)


def as_floats(cache: torch.Tensor) -> torch.Tensor:
    return cache[..., :-4].float() * cache[..., -4:].contiguous().view(torch.float32) if cache.dtype == torch.int8 else cache.float()


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([84, 140, 141]),
    groups=st.integers(1, 5),
    size=st.sampled_from([8, 32, 64]),
    outputs=st.integers(1, 150),
)
def test_4_bit_levels_are_multiplied_as_the_values_they_stand_for(built: Kernel, rows: int, groups: int, size: int, outputs: int) -> None:
    torch.manual_seed(rows + 1000 * outputs)
    x, table = torch.randn(rows, groups * size).bfloat16(), torch.randn(16)
    levels = torch.randint(0, 16, (outputs, groups * size))
    scale, offset = torch.rand(outputs, groups) + 0.5, torch.randn(outputs, groups)
    values = table[levels].view(outputs, groups, size) * scale[..., None] + offset[..., None]
    result = built.linear(x, pack_levels(levels, table.tolist(), scale, offset, built.columns), Epilogue(outputs))
    torch.testing.assert_close(result.float(), x.float() @ values.view(outputs, -1).T, atol=1e-2, rtol=2**-7)


@pytest.mark.parametrize("built", ["native", *OLDER], indirect=True)
@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([84, 141]),
    groups=st.integers(1, 5),
    kind=st.sampled_from([(4, 32, 8), (4, 32, 16), (8, 32, 8), (8, 32, 16), (8, 16, 16)]),
    outputs=st.integers(1, 150),
    spread=st.sampled_from([1e-36, 1e-3, 1.0, 1e30]),
    weight_spread=st.sampled_from([2.0**-20, 1.0, 2.0**17]),  # powers of two, so that float16 holds the scales exactly
    binary_op=st.sampled_from(["none", "mul", "add"]),
)
def test_groups_are_multiplied_by_rounded_inputs(
    built: Kernel,
    rows: int,
    groups: int,
    kind: tuple[int, int, int],
    outputs: int,
    spread: float,
    weight_spread: float,
    binary_op: str,
) -> None:
    torch.manual_seed(rows + 1000 * outputs)
    bits, size, input_bits = kind
    limit = 127 if input_bits == 8 else 127 * 256
    x, operand = (spread * torch.randn(rows, groups, size)).bfloat16(), torch.randn(rows, outputs).bfloat16()
    x[rows // 2, 0] = 0
    levels = torch.randint(0, 1 << bits, (outputs, groups * size), dtype=torch.uint8)
    scale, minimum = (torch.rand(outputs, groups) + 0.5).half().float(), torch.randn(outputs, groups).half().float()
    weights = GroupedWeights(levels, weight_spread * scale / (1 << bits), weight_spread * minimum, bits)
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
    for bits, groups, input_bits in ((4, 2, 8), (4, 2, 16), (8, 2, 8), (8, 2, 16), (8, 4, 16)):
        levels = torch.full((5, 64), (1 << bits) - 1, dtype=torch.uint8)
        weights = GroupedWeights(levels, torch.ones(5, groups), torch.zeros(5, groups), bits)
        expected = torch.full((7, 5), 64.0 * ((1 << bits) - 1)).bfloat16()
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
        pack_levels(levels, range(-8, 8), scale, offset, built.columns),
        *(
            replace(pack_grouped(GroupedWeights(levels.to(torch.uint8), scale, offset, bits), built.columns), input_bits=input_bits)
            for bits, input_bits in ((4, 8), (4, 16), (8, 8), (8, 16))
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


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256]),
    window=st.none() | st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    bytes_cached=st.booleans(),
    data=st.data(),
)
def test_decode_attention_matches_torch(
    built: Kernel,
    rows: int,
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    bytes_cached: bool,
    data: st.DataObject,
) -> None:
    torch.manual_seed(rows + 10 * dim)
    joint = torch.randn(rows, (group + 2) * kv_heads, dim).to(dtype)  # one qkv projection: strided rows
    query, key, value = joint.split([group * kv_heads, kv_heads, kv_heads], 1)
    pack = in_bytes if bytes_cached else torch.clone
    keys, values = (pack(torch.randn(24, kv_heads, PAGE, dim).to(dtype)) for _ in range(2))
    pages = torch.tensor(data.draw(st.permutations(range(24)))[: 2 * rows])
    positions = torch.tensor(data.draw(st.lists(st.integers(0, 2 * PAGE - 1), min_size=rows, max_size=rows)))
    expected_keys, expected_values = keys.clone(), values.clone()
    written, firsts = pages[2 * torch.arange(rows) + positions // PAGE], 2 * torch.arange(rows)
    expected_keys[written, :, positions % PAGE], expected_values[written, :, positions % PAGE] = pack(key), pack(value)
    batch = DecodeRows(query, key, value, keys, values, pages, firsts, positions, 0.3, window)
    assert batch.is_supported(built.columns)
    result = built.attend_decode(batch)
    assert torch.equal(keys, expected_keys) and torch.equal(values, expected_values)
    for row, position in enumerate(positions.tolist()):
        visible, own = slice(max(0, position + 1 - window) if window else 0, position + 1), pages[2 * row : 2 * row + 2]
        k, v = (as_floats(cache[own].transpose(0, 1).flatten(1, 2)[:, visible]) for cache in (expected_keys, expected_values))
        expected = F.scaled_dot_product_attention(query[row, :, None].float()[None], k[None], v[None], scale=0.3, enable_gqa=True)[0, :, 0]
        atol, rtol = (1e-2, 2**-6) if dtype == torch.bfloat16 else (5e-6, 1e-5)
        torch.testing.assert_close(result[row].float(), expected, atol=atol, rtol=rtol)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 45) | st.sampled_from([140, 600]),
    start=st.integers(0, 40) | st.sampled_from([500, 1030]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256]),
    window=st.none() | st.integers(1, 70) | st.just(600),
)
def test_prefill_attention_matches_torch(
    built: Kernel, rows: int, start: int, kv_heads: int, group: int, dim: int, window: int | None
) -> None:
    torch.manual_seed(rows + 10 * dim)
    joint = torch.randn(rows, (group + 2) * kv_heads, dim).bfloat16()
    cache = torch.randn(2, kv_heads, 1700, dim).bfloat16()[:, :, : start + rows].transpose(1, 2)  # a slot of the cache: strided heads
    batch = PrefillRows(joint[:, : group * kv_heads], cache[0], cache[1], start, 0.3, window)
    assert batch.is_supported(built.columns)
    positions = torch.arange(start + rows)
    visible = positions <= positions[start:, None]
    visible &= positions > positions[start:, None] - (window or 10**6)
    query, key, value = (part.float().transpose(0, 1)[None] for part in (batch.query, batch.key, batch.value))
    expected = F.scaled_dot_product_attention(query, key, value, visible, scale=0.3, enable_gqa=True)[0].transpose(0, 1)
    result = built.attend_prefill(batch)
    torch.testing.assert_close(result.float(), expected, atol=1e-2, rtol=2**-6)
    last = PrefillRows(joint[-1:, : group * kv_heads], cache[0], cache[1], start + rows - 1, 0.3, window)
    assert torch.equal(built.attend_prefill(last), result[-1:]), "the last row by itself"


@pytest.mark.parametrize("window", [None, 40, 600])
@pytest.mark.parametrize("start", [0, 63, 64, 500, 1030])
@pytest.mark.parametrize("page", [32, 64, 256])
def test_attention_is_the_same_bit_for_bit_wherever_the_pages_lie(built: Kernel, page: int, start: int, window: int | None) -> None:
    torch.manual_seed(start)
    rows, kv_heads, heads, dim = 37, 2, 6, 64
    query, *plain = torch.randn(rows, heads, dim).bfloat16(), *torch.randn(2, start + rows, kv_heads, dim).bfloat16()
    own = [each[start:] for each in plain]  # keys and values of the rows; those before are in the cache
    count = -(-(start + rows) // page)
    last, firsts = torch.tensor([start + rows - 1]), torch.tensor([0])
    for pack in (torch.clone, in_bytes):
        alone = built.attend_prefill(PrefillRows(query, *(as_floats(pack(each)).bfloat16() for each in plain), start, 0.3, window))
        longer = [pack(F.pad(each, (0, 0, 0, 0, 0, 32 * 64 - len(each)), value=1.0)).transpose(0, 1)[None].contiguous() for each in plain]
        whole = PrefillRows(query, *own, start, 0.3, window, firsts, tuple(longer))
        attended = built.attend_prefill(whole)
        torch.testing.assert_close(attended.float(), alone.float(), atol=0 if pack is torch.clone else 4e-2, rtol=0)
        decoded = built.attend_decode(DecodeRows(query[-1:], *(each[-1:] for each in own), *longer, firsts, firsts, last, 0.3, window))
        torch.testing.assert_close(decoded.float(), attended[-1:].float(), atol=1e-2, rtol=2**-6)
        for order in (torch.arange(count), torch.randperm(2 * count)[:count]):
            caches = []
            for each in plain:
                cache = pack(torch.randn(2 * count, kv_heads, page, dim).bfloat16())
                before = F.pad(each[:start], (0, 0, 0, 0, 0, count * page - start), value=1.0)
                cache[order] = pack(before).unflatten(0, (count, page)).transpose(1, 2)
                caches.append(cache)
            assert torch.equal(built.attend_prefill(PrefillRows(query, *own, start, 0.3, window, order, tuple(caches))), attended)
            batch = DecodeRows(query[-1:], *(each[-1:] for each in own), *caches, order, firsts, last, 0.3, window)
            assert torch.equal(built.attend_decode(batch), decoded)


def test_rows_in_float32_attend_to_a_cache_in_bytes(built: Kernel) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(70, 6, 32), torch.randn(70, 2, 32), torch.randn(70, 2, 32)
    pages, caches = torch.tensor([2, 0, 1]), tuple(torch.zeros(3, 2, 32, 36, dtype=torch.int8) for _ in range(2))
    batch = PrefillRows(query, key, value, 0, None, None, pages, caches)
    assert batch.is_supported(built.columns)
    k, v = (as_floats(in_bytes(part)).transpose(0, 1)[None] for part in (key, value))
    expected = F.scaled_dot_product_attention(query.transpose(0, 1)[None], k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
    torch.testing.assert_close(built.attend_prefill(batch), expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("non_finite", [float("nan"), float("inf"), float("-inf")])
def test_a_cache_in_bytes_keeps_nan_and_infinity_visible(built: Kernel, non_finite: float) -> None:
    """To the head that has it, not to the other."""
    rows = torch.ones(3, 2, 64).bfloat16()
    value = rows.clone()
    value[1, 0, 40] = non_finite
    caches = tuple(torch.zeros(1, 2, 32, 68, dtype=torch.int8) for _ in range(2))
    result = built.attend_prefill(PrefillRows(rows, rows, value, 0, None, None, torch.tensor([0]), caches))
    assert bool(result[1:, 0].isnan().all()) and torch.equal(result[:, 1], torch.ones(3, 64).bfloat16())


def test_unsupported_attention_shapes_are_reported(built: Kernel) -> None:
    query, key, cache, index = torch.zeros(1, 4, 20), torch.zeros(1, 2, 20), torch.zeros(3, 2, 9, 20), torch.zeros(1, dtype=torch.long)
    half = [part.bfloat16() for part in (query, key, cache)]
    assert not DecodeRows(half[0], half[1], half[1], half[2], half[2], index, index, index).is_supported(built.columns), "a head of 20"
    assert not PrefillRows(half[0], half[1], half[1], 0).is_supported(built.columns)
    wide = [F.pad(part, (0, 12)) for part in (query, key, cache)]
    assert not DecodeRows(wide[0], wide[1], wide[1], half[2], half[2], index, index, index).is_supported(built.columns), "two precisions"
    assert not PrefillRows(wide[0], wide[1], wide[1], 0).is_supported(built.columns)
    transposed = F.pad(half[0], (0, 12)).transpose(1, 2).contiguous().transpose(1, 2)
    rest = [F.pad(part, (0, 12)) for part in half[1:]]
    table = (index, index, index)
    assert not DecodeRows(transposed, rest[0], rest[0], rest[1], rest[1], *table).is_supported(built.columns), "a transposed query"
    assert not PrefillRows(transposed, rest[0], rest[0], 0).is_supported(built.columns)
    queries, key, odd = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((1, 3, 32), (1, 1, 32), (2, 1, 40, 32)))
    assert DecodeRows(queries, key, key, odd, odd, *table).is_supported(built.columns)
    assert not PrefillRows(queries, key, key, 0, pages=index, cache=(odd, odd)).is_supported(built.columns), "pages of 40 tokens"


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
