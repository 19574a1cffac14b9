"""The compiled kernel against torch's, on its edges; and what happens where it cannot be had."""

import ctypes
import logging
import subprocess
from pathlib import Path

import pytest
import torch
from driving import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from app.engine import compiler
from app.engine.compiler import COMPILE, UNITS
from app.engine.kernel import Ending, Kernel, Reading, Step, kernel
from app.engine.packing import levels as levels_of
from app.engine.packing import padded, pairs, steps

STRICT = (*COMPILE, "-Wall", "-Wextra", "-Werror")
NARROW = ("-mno-avx512f", "-mavx2", "-mfma")  # what most laptops have
WITHOUT_VNNI = (*NARROW, "-mno-avxvnni"), ("-mno-avx512vnni",)


@pytest.fixture(scope="module", params=[(), NARROW], ids=["native", "avx2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    native = compiled()
    if not request.param:
        return native
    path = tmp_path_factory.mktemp("kernel") / "kernel.so"
    subprocess.run([*STRICT, *request.param, "-o", path, *UNITS], check=True)
    return Kernel(ctypes.CDLL(str(path)))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([70, 84, 85, 99, 140, 141, 300]),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 150),
    bias=st.booleans(),
    then=st.sampled_from(["none", "swish"]),
    how=st.sampled_from(["alone", "mul", "add"]),
)
def test_any_shape_and_ending_is_torchs(made: Kernel, rows: int, inputs: int, outputs: int, bias: bool, then: str, how: str) -> None:
    torch.manual_seed(rows + 1000 * inputs)
    x, weight, other = (torch.randn(size).bfloat16() for size in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    shift = torch.randn(outputs).bfloat16() if bias else None
    found = made(x, pairs(weight, made.columns), Ending(outputs, None if shift is None else padded(shift, made.columns), then, how, other))
    wanted = F.linear(x.float(), weight.float(), None if shift is None else shift.float())
    wanted = F.silu(wanted) if then == "swish" else wanted
    wanted = {"alone": wanted, "mul": wanted * other.float(), "add": wanted + other.float()}[how]
    torch.testing.assert_close(found.float(), wanted, atol=1e-3, rtol=2**-7)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([84, 140, 141]),
    groups=st.integers(1, 5),
    size=st.sampled_from([8, 32, 64]),
    outputs=st.integers(1, 150),
)
def test_levels_are_their_values(made: Kernel, rows: int, groups: int, size: int, outputs: int) -> None:
    torch.manual_seed(rows + 1000 * outputs)
    x, table = torch.randn(rows, groups * size).bfloat16(), torch.randn(16)
    levels = torch.randint(0, 16, (outputs, groups * size))
    scale, middle = torch.rand(outputs, groups) + 0.5, torch.randn(outputs, groups)
    values = table[levels].view(outputs, groups, size) * scale[..., None] + middle[..., None]
    found = made(x, levels_of(levels, table.tolist(), scale, middle, made.columns), Ending(outputs))
    torch.testing.assert_close(found.float(), x.float() @ values.view(outputs, -1).T, atol=1e-2, rtol=2**-7)


@pytest.mark.parametrize("made", [(), NARROW, *WITHOUT_VNNI], ids=["native", "avx2", "avx2 alone", "avx512 alone"], indirect=True)
@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40) | st.sampled_from([84, 141]),
    groups=st.integers(1, 5),
    outputs=st.integers(1, 150),
    spread=st.sampled_from([1e-36, 1e-3, 1.0, 1e30]),
    ending=st.sampled_from(["alone", "mul", "add"]),
)
def test_even_levels_are_multiplied_by_inputs_in_bytes(
    made: Kernel, rows: int, groups: int, outputs: int, spread: float, ending: str
) -> None:
    torch.manual_seed(rows + 1000 * outputs)
    x, other = (spread * torch.randn(rows, groups, 32)).bfloat16(), torch.randn(rows, outputs).bfloat16()
    x[rows // 2, 0] = 0
    levels = torch.randint(0, 16, (outputs, groups, 32))
    scale, middle = (torch.rand(outputs, groups) + 0.5).bfloat16(), torch.randn(outputs, groups).bfloat16()
    most = x.float().abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 1e-30, torch.tensor(127.0) / most, 0)  # 127 / most would be its reciprocal, rounded, times 127
    rounded = (x.double() * inverse.double()).round().float() * (most / 127)  # the product is exact, so ties fall as the kernel's
    values = (levels - 8) * scale.float()[..., None] + middle.float()[..., None]
    wanted = rounded.view(rows, -1) @ values.view(outputs, -1).T
    wanted = {"alone": wanted, "mul": wanted * other.float(), "add": wanted + other.float()}[ending]
    packed = steps(levels.view(outputs, -1), scale, middle, made.columns)
    found = made(x.view(rows, -1), packed, Ending(outputs, how=ending, other=other))
    torch.testing.assert_close(found.float(), wanted, atol=1e-2 * max(spread, 1e-2), rtol=2**-7)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_rounded_away(made: Kernel, odd: float) -> None:
    x = torch.ones(3, 64).bfloat16()
    x[1, 40] = odd
    packed = steps(torch.full((5, 64), 9), torch.ones(5, 2), torch.zeros(5, 2), made.columns)
    found = made(x, packed, Ending(5))
    assert bool(found[1].isnan().all()) and torch.equal(found[::2], torch.full((2, 5), 64.0).bfloat16())


def test_a_row_is_the_same_alone_and_among_others(made: Kernel) -> None:
    x, weight = torch.randn(150, 96).bfloat16(), torch.randn(200, 96).bfloat16()
    given = torch.randint(0, 16, (200, 96)), torch.rand(200, 3), torch.randn(200, 3)
    levels = levels_of(given[0], range(-8, 8), *given[1:], made.columns)
    for packed in (pairs(weight, made.columns), levels, steps(*given, made.columns)):
        whole = made(x, packed, Ending(200))
        for size in (1, 2, 3, 14, 20, 83, 99):
            parts = [made(part, packed, Ending(200)) for part in x.split(size)]
            assert torch.equal(torch.cat(parts), whole), size


def test_extremes(made: Kernel) -> None:
    x = torch.tensor([[-3e38], [-90.0], [-1e-38], [0.0], [90.0], [3e38], [float("inf")], [float("nan")]]).bfloat16()
    found = made(x, pairs(torch.ones(1, 1).bfloat16(), made.columns), Ending(1, then="swish"))
    torch.testing.assert_close(found, F.silu(x), equal_nan=True, atol=1e-30, rtol=0.01)
    ties = torch.tensor([[1 + 2**-8], [1 + 3 * 2**-8], [-(1 + 2**-8)]])  # half-way between two bfloat16: to the even one
    halves = made(
        torch.cat([ties.bfloat16(), (ties - ties.bfloat16()).bfloat16()], 1), pairs(torch.ones(1, 2).bfloat16(), made.columns), Ending(1)
    )
    assert torch.equal(halves, ties.bfloat16())


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256]),
    window=st.none() | st.integers(1, 40),
    data=st.data(),
)
def test_decoding_rows_attend_as_torchs(
    made: Kernel, rows: int, kv_heads: int, group: int, dim: int, window: int | None, data: st.DataObject
) -> None:
    torch.manual_seed(rows + 10 * dim)
    joint = torch.randn(rows, (group + 2) * kv_heads, dim).bfloat16()  # as the joined projection gives them: rows lie apart
    query, key, value = joint.split([group * kv_heads, kv_heads, kv_heads], 1)
    keys, values = (torch.randn(12, kv_heads, 70, dim).bfloat16() for _ in range(2))
    slots = torch.tensor(data.draw(st.permutations(range(12)))[:rows])
    positions = torch.tensor(data.draw(st.lists(st.integers(0, 69), min_size=rows, max_size=rows)))
    wanted_keys, wanted_values = keys.clone(), values.clone()
    wanted_keys[slots, :, positions], wanted_values[slots, :, positions] = key, value
    step = Step(query, key, value, keys, values, slots, positions, 0.3, window)
    assert step.fits(made.columns)
    found = made.decode(step)
    assert torch.equal(keys, wanted_keys) and torch.equal(values, wanted_values)
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
        k, v = wanted_keys[slot, :, seen].float(), wanted_values[slot, :, seen].float()
        wanted = F.scaled_dot_product_attention(query[row, :, None].float()[None], k[None], v[None], scale=0.3, enable_gqa=True)[0, :, 0]
        torch.testing.assert_close(found[row].float(), wanted, atol=1e-2, rtol=2**-6)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 45) | st.sampled_from([140, 600]),
    start=st.integers(0, 40) | st.sampled_from([500, 1030]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256]),
    window=st.none() | st.integers(1, 70) | st.just(600),
)
def test_a_prompt_attends_as_torchs(made: Kernel, rows: int, start: int, kv_heads: int, group: int, dim: int, window: int | None) -> None:
    torch.manual_seed(rows + 10 * dim)
    joint = torch.randn(rows, (group + 2) * kv_heads, dim).bfloat16()
    cache = torch.randn(2, kv_heads, 1700, dim).bfloat16()[:, :, : start + rows].transpose(1, 2)  # as slots hold them: heads lie apart
    reading = Reading(joint[:, : group * kv_heads], cache[0], cache[1], 0.3, window)
    assert reading.fits(made.columns)
    at = torch.arange(start + rows)
    seen = at <= at[start:, None]
    seen &= at > at[start:, None] - (window or 10**6)
    query, key, value = (part.float().transpose(0, 1)[None] for part in (reading.query, reading.key, reading.value))
    wanted = F.scaled_dot_product_attention(query, key, value, seen, scale=0.3, enable_gqa=True)[0].transpose(0, 1)
    found = made.read(reading)
    torch.testing.assert_close(found.float(), wanted, atol=1e-2, rtol=2**-6)
    last = Reading(joint[-1:, : group * kv_heads], cache[0], cache[1], 0.3, window)
    assert torch.equal(made.read(last), found[-1:]), "the last row by itself"


def test_what_the_kernel_cannot_attend_to_is_left_to_torch(made: Kernel) -> None:
    query, key, cache, at = torch.zeros(1, 4, 20), torch.zeros(1, 2, 20), torch.zeros(3, 2, 9, 20), torch.zeros(1, dtype=torch.long)
    half = [part.bfloat16() for part in (query, key, cache)]
    assert not Step(half[0], half[1], half[1], half[2], half[2], at, at).fits(made.columns), "a head of 20"
    assert not Reading(half[0], half[1], half[1]).fits(made.columns)
    whole = [F.pad(part, (0, 12)) for part in (query, key, cache)]
    assert not Step(whole[0], whole[1], whole[1], whole[2], whole[2], at, at).fits(made.columns), "float32"
    assert not Reading(whole[0], whole[1], whole[1]).fits(made.columns)
    across = F.pad(half[0], (0, 12)).transpose(1, 2).contiguous().transpose(1, 2)
    rest = [F.pad(part, (0, 12)) for part in half[1:]]
    assert not Step(across, rest[0], rest[0], rest[1], rest[1], at, at).fits(made.columns), "heads that lie across"
    assert not Reading(across, rest[0], rest[0]).fits(made.columns)


@pytest.mark.parametrize("size", [1, 7, 16, 64, 100, 576])
def test_the_norm_is_torchs(made: Kernel, size: int) -> None:
    x, weight = torch.randn(3, 5, size).bfloat16() * 3, torch.randn(size).bfloat16()
    wanted = F.rms_norm(x.float(), (size,), weight.float(), 1e-5)
    torch.testing.assert_close(made.norm(x, weight, 1e-5).float(), wanted, atol=1e-6, rtol=2**-7)


def test_threads_give_the_same(made: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    x, packed = torch.randn(100, 64).bfloat16(), pairs(torch.randn(333, 64).bfloat16(), made.columns)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        found.append(made(x, packed, Ending(333)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No compiled library anywhere yet."""
    kernel.cache_clear()
    monkeypatch.setattr(compiler, "_folders", lambda: iter([tmp_path / "kept"]))
    yield tmp_path
    kernel.cache_clear()


def test_it_is_compiled_once(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "COMPILE", STRICT)
    compiled()
    (path,) = (afresh / "kept").iterdir()
    kernel.cache_clear()
    monkeypatch.setattr(compiler, "_compiled", lambda wanted: wanted if wanted == path else None)
    assert kernel() is not None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("compiler.COMPILE", ("no-such-gcc",), "no-such-gcc"),
        ("compiler.COMPILE", (*COMPILE, "-Dvoid=broken"), "gcc:"),
        ("compiler._folders", lambda: iter([Path("/proc/nowhere")]), "/proc/nowhere"),
    ],
)
def test_without_it_the_layers_are_onednns(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name, value, says
) -> None:
    monkeypatch.setattr(f"app.engine.{name}", value)
    with caplog.at_level(logging.WARNING):
        assert kernel() is None
    assert says in caplog.text


def test_one_that_is_wrong_here_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled()
    kernel.cache_clear()
    monkeypatch.setattr(Kernel, "__call__", lambda made, x, packed, ending: torch.zeros(len(x), ending.outputs, dtype=torch.bfloat16))
    assert kernel() is None and "wrong on this machine" in caplog.text
    kernel.cache_clear()
