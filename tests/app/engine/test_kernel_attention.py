"""The compiled kernel's attention against torch, including edge cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from app.engine.kernel import Kernel
from app.engine.rows import DecodeRows, PrefillRows
from app.engine.scores import Scores

PAGE = 32  # tokens
CAPS = st.none() | st.sampled_from([0.5, 20.0])


def sinks_of(heads: int, has_sinks: bool) -> torch.Tensor | None:
    return torch.randn(heads) + 2 if has_sinks else None


def by_definition(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, how: Scores) -> torch.Tensor:
    """In float64: `query` `[heads, rows, dim]`, `key` and `value` `[kv_heads, tokens, dim]`, `visible` `[rows, tokens]`."""
    query, key, value = (part.double().repeat_interleave(len(query) // len(part), 0) for part in (query, key, value))
    scores = query @ key.transpose(1, 2) * (how.scale or 1)
    scores = scores if how.cap is None else how.cap * torch.tanh(scores / how.cap)
    scores = scores.masked_fill(~visible, -torch.inf)
    if how.sinks is not None:
        scores = torch.cat([scores, how.sinks.double().view(-1, 1, 1).expand(-1, len(visible), 1)], -1)
    return (scores.softmax(-1)[..., : key.shape[1]] @ value).float()


def in_bytes(plain: torch.Tensor) -> torch.Tensor:
    """Keys or values `[..., dim]` as the cache has them in 8 bits: `[..., dim + 4]`."""
    largest = plain.float().abs().amax(-1, keepdim=True)
    levels = (plain.float() * (torch.tensor(127.0) / largest)).round()
    return torch.cat([levels.to(torch.int8), (largest / 127).view(torch.int8)], -1)


def as_floats(cache: torch.Tensor) -> torch.Tensor:
    return cache[..., :-4].float() * cache[..., -4:].contiguous().view(torch.float32) if cache.dtype == torch.int8 else cache.float()


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256, 512]),
    window=st.none() | st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    bytes_cached=st.booleans(),
    cap=CAPS,
    has_sinks=st.booleans(),
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
    cap: float | None,
    has_sinks: bool,
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
    how = Scores(0.3, window, cap, sinks_of(group * kv_heads, has_sinks))
    batch = DecodeRows(query, key, value, keys, values, pages, firsts, positions, how)
    assert batch.is_supported(built.columns)
    result = built.attend_decode(batch)
    assert torch.equal(keys, expected_keys) and torch.equal(values, expected_values)
    for row, position in enumerate(positions.tolist()):
        visible, own = slice(max(0, position + 1 - window) if window else 0, position + 1), pages[2 * row : 2 * row + 2]
        k, v = (as_floats(cache[own].transpose(0, 1).flatten(1, 2)[:, visible]) for cache in (expected_keys, expected_values))
        expected = by_definition(query[row, :, None], k, v, torch.ones(1, k.shape[1], dtype=torch.bool), how)[:, 0]
        atol, rtol = (1e-2, 2**-6) if dtype == torch.bfloat16 else (2e-5, 1e-5)
        torch.testing.assert_close(result[row].float(), expected, atol=atol, rtol=rtol)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 45) | st.sampled_from([140, 600]),
    start=st.integers(0, 40) | st.sampled_from([500, 1030]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256, 512]),
    window=st.none() | st.integers(1, 70) | st.just(600),
    cap=CAPS,
    has_sinks=st.booleans(),
)
def test_prefill_attention_matches_torch(
    built: Kernel, rows: int, start: int, kv_heads: int, group: int, dim: int, window: int | None, cap: float | None, has_sinks: bool
) -> None:
    torch.manual_seed(rows + 10 * dim)
    joint = torch.randn(rows, (group + 2) * kv_heads, dim).bfloat16()
    cache = torch.randn(2, kv_heads, 1700, dim).bfloat16()[:, :, : start + rows].transpose(1, 2)  # a slot of the cache: strided heads
    how = Scores(0.3, window, cap, sinks_of(group * kv_heads, has_sinks))
    batch = PrefillRows(joint[:, : group * kv_heads], cache[0], cache[1], start, how)
    assert batch.is_supported(built.columns)
    positions = torch.arange(start + rows)
    visible = positions <= positions[start:, None]
    visible &= positions > positions[start:, None] - (window or 10**6)
    query, key, value = (part.transpose(0, 1) for part in (batch.query, batch.key, batch.value))
    expected = by_definition(query, key, value, visible, how).transpose(0, 1)
    result = built.attend_prefill(batch)
    torch.testing.assert_close(result.float(), expected, atol=1e-2, rtol=2**-6)
    last = PrefillRows(joint[-1:, : group * kv_heads], cache[0], cache[1], start + rows - 1, how)
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
        alone = built.attend_prefill(PrefillRows(query, *(as_floats(pack(each)).bfloat16() for each in plain), start, Scores(0.3, window)))
        longer = [pack(F.pad(each, (0, 0, 0, 0, 0, 32 * 64 - len(each)), value=1.0)).transpose(0, 1)[None].contiguous() for each in plain]
        whole = PrefillRows(query, *own, start, Scores(0.3, window), firsts, tuple(longer))
        attended = built.attend_prefill(whole)
        torch.testing.assert_close(attended.float(), alone.float(), atol=0 if pack is torch.clone else 4e-2, rtol=0)
        decoded = built.attend_decode(
            DecodeRows(query[-1:], *(each[-1:] for each in own), *longer, firsts, firsts, last, Scores(0.3, window))
        )
        torch.testing.assert_close(decoded.float(), attended[-1:].float(), atol=1e-2, rtol=2**-6)
        for order in (torch.arange(count), torch.randperm(2 * count)[:count]):
            caches = []
            for each in plain:
                cache = pack(torch.randn(2 * count, kv_heads, page, dim).bfloat16())
                before = F.pad(each[:start], (0, 0, 0, 0, 0, count * page - start), value=1.0)
                cache[order] = pack(before).unflatten(0, (count, page)).transpose(1, 2)
                caches.append(cache)
            assert torch.equal(built.attend_prefill(PrefillRows(query, *own, start, Scores(0.3, window), order, tuple(caches))), attended)
            batch = DecodeRows(query[-1:], *(each[-1:] for each in own), *caches, order, firsts, last, Scores(0.3, window))
            assert torch.equal(built.attend_decode(batch), decoded)


def test_rows_in_float32_attend_to_a_cache_in_bytes(built: Kernel) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(70, 6, 32), torch.randn(70, 2, 32), torch.randn(70, 2, 32)
    pages, caches = torch.tensor([2, 0, 1]), tuple(torch.zeros(3, 2, 32, 36, dtype=torch.int8) for _ in range(2))
    batch = PrefillRows(query, key, value, 0, pages=pages, cache=caches)
    assert batch.is_supported(built.columns)
    k, v = (as_floats(in_bytes(part)).transpose(0, 1)[None] for part in (key, value))
    expected = F.scaled_dot_product_attention(query.transpose(0, 1)[None], k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
    torch.testing.assert_close(built.attend_prefill(batch), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("non_finite", [float("nan"), float("inf"), float("-inf")])
def test_a_cache_in_bytes_keeps_nan_and_infinity_visible(built: Kernel, non_finite: float) -> None:
    """To the head that has it, not to the other."""
    rows = torch.ones(3, 2, 64).bfloat16()
    value = rows.clone()
    value[1, 0, 40] = non_finite
    caches = tuple(torch.zeros(1, 2, 32, 68, dtype=torch.int8) for _ in range(2))
    result = built.attend_prefill(PrefillRows(rows, rows, value, 0, pages=torch.tensor([0]), cache=caches))
    assert bool(result[1:, 0].isnan().all()) and torch.equal(result[:, 1], torch.ones(3, 64).bfloat16())


def test_unsupported_attention_shapes_are_reported(built: Kernel) -> None:
    query, key, cache, index = torch.zeros(1, 4, 18), torch.zeros(1, 2, 18), torch.zeros(3, 2, 9, 18), torch.zeros(1, dtype=torch.long)
    half = [part.bfloat16() for part in (query, key, cache)]
    assert not DecodeRows(half[0], half[1], half[1], half[2], half[2], index, index, index).is_supported(built.columns), "a head of 18"
    assert not PrefillRows(half[0], half[1], half[1], 0).is_supported(built.columns)
    wide = [F.pad(part, (0, 14)) for part in (query, key, cache)]
    assert not DecodeRows(wide[0], wide[1], wide[1], half[2], half[2], index, index, index).is_supported(built.columns), "two precisions"
    assert not PrefillRows(wide[0], wide[1], wide[1], 0).is_supported(built.columns)
    transposed = F.pad(half[0], (0, 14)).transpose(1, 2).contiguous().transpose(1, 2)
    rest = [F.pad(part, (0, 14)) for part in half[1:]]
    table = (index, index, index)
    assert not DecodeRows(transposed, rest[0], rest[0], rest[1], rest[1], *table).is_supported(built.columns), "a transposed query"
    assert not PrefillRows(transposed, rest[0], rest[0], 0).is_supported(built.columns)
    queries, key, odd = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((1, 3, 32), (1, 1, 32), (2, 1, 36, 32)))
    assert DecodeRows(queries, key, key, odd, odd, *table).is_supported(built.columns)
    assert not PrefillRows(queries, key, key, 0, pages=index, cache=(odd, odd)).is_supported(built.columns), "pages of 36 tokens"


@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize(("kv_heads", "group", "dim"), [(1, 9, 64), (3, 2, 48)])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.int8])
def test_long_sequences_are_read_in_parts_and_what_a_row_gets_depends_on_nothing_beside_it(
    built: Kernel, kind: torch.dtype, kv_heads: int, group: int, dim: int, window: int | None
) -> None:
    """In parts of 512 tokens: of one, ending at its end or one token after it, and of several."""
    torch.manual_seed(dim)
    lengths, page = (5, 512, 513, 1025, 2000), 64
    dtype = torch.float32 if kind == torch.float32 else torch.bfloat16
    pack = in_bytes if kind == torch.int8 else torch.clone
    query, key, value = (torch.randn(len(lengths), heads, dim).to(dtype) for heads in (group * kv_heads, kv_heads, kv_heads))
    keys, values = (pack((torch.randn(160, kv_heads, page, dim) * 2).to(dtype)) for _ in range(2))
    counts, pages = [-(-length // page) for length in lengths], torch.randperm(160)
    firsts, positions = torch.tensor([sum(counts[:row]) for row in range(len(lengths))]), torch.tensor(lengths) - 1

    def attend(chosen: slice) -> torch.Tensor:
        rows = (query[chosen], key[chosen], value[chosen])
        return built.attend_decode(DecodeRows(*rows, keys, values, pages, firsts[chosen], positions[chosen], Scores(0.3, window)))

    together, threads = attend(slice(None)), torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for row in range(len(lengths)):
                assert torch.equal(attend(slice(row, row + 1))[0], together[row])
            assert torch.equal(attend(slice(None)), together)
    finally:
        torch.set_num_threads(threads)
    for row, length in enumerate(lengths):
        own, visible = pages[firsts[row] : firsts[row] + counts[row]], slice(max(0, length - window) if window else 0, length)
        k, v = (as_floats(cache[own].transpose(0, 1).flatten(1, 2)[:, visible]) for cache in (keys, values))
        expected = F.scaled_dot_product_attention(query[row, :, None].float()[None], k[None], v[None], scale=0.3, enable_gqa=True)[0, :, 0]
        atol, rtol = (2e-5, 1e-5) if dtype == torch.float32 and kind != torch.int8 else (1e-2, 2**-6)
        torch.testing.assert_close(together[row].float(), expected, atol=atol, rtol=rtol)
