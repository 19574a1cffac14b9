"""The memory ledger and the default number of slots."""

from dataclasses import replace

import pytest
import torch
from transformers import Ernie4_5_MoeConfig, LlamaConfig, Qwen3MoeConfig

from app.engine import varlen
from app.engine.capacity import CHOICES, GRAPH_BYTES, CacheLimits, row_counts, size_that_fits, step_bytes
from app.engine.ledger import SLOT_TOKENS, Ledger, device_memory, weight_bytes
from app.errors import SetupError

MIB = 2**20


@pytest.mark.parametrize(
    ("memory", "requested", "slots"), [(1000, None, 17), (1000, 5, 5), (10_000, None, 32), (1000, 17, 17), (10_000, 100, 100)]
)
def test_slots_are_those_requested_or_as_many_as_fit(memory: int, requested: int | None, slots: int) -> None:
    ledger = Ledger(memory * MIB, weights=500 * MIB, activations=100 * MIB, slot=20 * MIB, text=20 * MIB)
    assert ledger.slots(requested, "cpu") == slots


@pytest.mark.parametrize(("sharers", "requested", "slots"), [(1, None, 17), (2, None, 5), (3, None, 1), (3, 17, 17)])
def test_processes_that_share_a_device_divide_its_memory_unless_slots_are_requested(
    sharers: int, requested: int | None, slots: int
) -> None:
    ledger = Ledger(1000 * MIB, weights=500 * MIB, activations=100 * MIB, slot=20 * MIB, text=20 * MIB, sharers=sharers)
    assert ledger.slots(requested, "cpu") == slots
    if requested is None:
        assert sharers * (100 + (slots + 1) * 20) <= 500


def test_a_share_that_is_too_small_is_refused_with_the_number_of_sharers() -> None:
    ledger = Ledger(1000 * MIB, weights=500 * MIB, activations=100 * MIB, slot=20 * MIB, text=20 * MIB, sharers=4)
    with pytest.raises(SetupError, match="of 0.98 GiB, shared by 4 processes, .* 0 slots would fit"):
        ledger.slots(None, "cpu")


@pytest.mark.parametrize(("memory", "requested"), [(1000, 18), (620, None), (100, 1)])
def test_what_does_not_fit_is_refused_with_the_numbers(memory: int, requested: int | None) -> None:
    ledger = Ledger(memory * MIB, weights=500 * MIB, activations=100 * MIB, slot=20 * MIB, text=20 * MIB)
    message = rf"{requested or 1} slots do not fit cuda:0: weights 0.49 GiB.*{ledger.max_slots} slots would fit"
    with pytest.raises(SetupError, match=message):
        ledger.slots(requested, "cuda:0")


@pytest.mark.parametrize(("page_tokens", "cache_tokens", "slots"), [(64, None, 32), (64, 512, 32), (varlen.PAGE_TOKENS, None, 128)])
def test_a_card_gets_more_slots_where_the_settings_give_no_number(page_tokens: int, cache_tokens: int | None, slots: int) -> None:
    limits = CacheLimits(None, context=256, page_tokens=page_tokens, cache_tokens=cache_tokens)
    ledger = Ledger(10_000 * MIB, weights=500 * MIB, activations=100 * MIB, slot=20 * MIB, text=20 * MIB)
    assert size_that_fits(ledger, limits, "the device").slots == slots == limits.most_slots


def test_a_model_shares_what_it_has_with_one_beside_it() -> None:
    """The context, too, is what fits this process's part, but a number of slots from the settings is held against all."""
    limits = CacheLimits(None, context=1_000_000, shrinks=True, text_window=SLOT_TOKENS // 2)
    ledger = Ledger(1060 * MIB, weights=0, activations=0, slot=20 * MIB, text=10 * MIB)  # a page takes 320 KiB
    assert sizes(ledger, limits) == (32, 64 * int(64 * 944 / 20), 2048)
    shared = replace(ledger, sharers=2)
    assert sizes(shared, limits) == (23, 64 * int(64 * 467 / 20), 2048)
    assert sizes(shared, replace(limits, slots=30)) == (30, 30 * SLOT_TOKENS, 2048)
    assert sizes(shared, replace(limits, slots=1, context=5000)) == (1, 5000, 2048)
    with pytest.raises(SetupError, match="a context of 200000 tokens"):
        sizes(ledger, replace(limits, context=200_000, shrinks=False))


@pytest.mark.parametrize(
    ("mib", "slots", "expected"),
    [
        (40, 1, (1, 64 * 83, 2048)),
        (20, None, (1, 64 * 28, 64 * 28)),
        (40, 3, None),
        (0.75, 1, (1, 64, 64)),
        (0.5, 1, None),
    ],
)
def test_a_context_gets_shorter_than_a_slots_part_and_the_window_with_it(
    mib: float, slots: int | None, expected: tuple[int, int, int] | None
) -> None:
    """Before a model is refused: 0.9 of these bytes are for its slots and the window, 320 KiB a page."""
    limits = CacheLimits(slots, context=1_000_000, shrinks=True, text_window=SLOT_TOKENS // 2)
    ledger = Ledger(int(mib * MIB), weights=0, activations=0, slot=20 * MIB, text=10 * MIB)
    if expected is not None:
        assert sizes(ledger, limits) == expected
    else:
        with pytest.raises(SetupError, match="[13] slots do not fit cpu"):
            sizes(ledger, limits)


def test_a_model_that_only_scores_needs_a_window_and_no_slot() -> None:
    limits = CacheLimits(0, context=100_000, text_window=2048)
    ledger = Ledger(20 * MIB, weights=5 * MIB, activations=0, slot=20 * MIB, text=10 * MIB)
    assert size_that_fits(ledger, limits, "cpu") == limits
    with pytest.raises(SetupError, match="only scores does not fit cpu: .* lower --model.text_window"):
        size_that_fits(replace(ledger, memory=16 * MIB), limits, "cpu")


def sizes(ledger: Ledger, limits: CacheLimits) -> tuple[int | None, int, int | None]:
    found = size_that_fits(ledger, limits, "cpu")
    return found.slots, found.context, found.text_window


def test_cuda_graphs_are_counted_where_steps_are_recorded() -> None:
    config = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=128)
    limits = CacheLimits(8, 512, page_tokens=varlen.PAGE_TOKENS)
    on_cpu = step_bytes(config, CacheLimits(8, 512))
    assert step_bytes(config, limits) >= on_cpu + GRAPH_BYTES * len(row_counts(32)) * len(CHOICES)
    assert step_bytes(config, replace(limits, graphs=False)) == on_cpu


def test_tied_weights_are_counted_once() -> None:
    first, second = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False)
    pair = torch.nn.ModuleList([first, second])
    assert weight_bytes(pair) == 2 * 400
    second.weight = first.weight
    assert weight_bytes(pair) == 400


def test_a_cache_of_its_own_size_fits_beside_a_context_for_long_texts_or_is_refused() -> None:
    ledger = Ledger(1000 * MIB, weights=500 * MIB, activations=100 * MIB, slot=20 * MIB, text=20 * MIB)
    ledger.check_cache(340 * MIB, "cpu")
    with pytest.raises(
        SetupError, match=r"a cache of 0.33 GiB does not fit cpu: with .* needs 0.94 GiB of 0.98 GiB.*lower --model.cache_tokens"
    ):
        ledger.check_cache(341 * MIB, "cpu")


def test_a_device_has_at_least_the_weights_that_are_on_it() -> None:
    assert device_memory(torch.device("cpu"), 12345) > 12345


def test_a_card_gets_back_what_a_load_has_freed_before_its_free_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [100 * MIB]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(400 * MIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 1000 * MIB))
    assert device_memory(torch.device("cuda:0"), 50 * MIB) == 450 * MIB


def test_a_mixture_adds_what_a_rows_experts_are_given_and_answer() -> None:
    sizes = {"hidden_size": 64, "vocab_size": 300, "intermediate_size": 96}
    limits = CacheLimits(4, context=256, step_tokens=16)
    dense = step_bytes(LlamaConfig(**sizes), limits)
    assert step_bytes(Qwen3MoeConfig(**sizes, num_experts_per_tok=8), limits) == dense + 4 * 16 * 4 * 8 * 64
    assert step_bytes(Ernie4_5_MoeConfig(**sizes, moe_k=2), limits) == dense + 4 * 16 * 4 * 2 * 64
