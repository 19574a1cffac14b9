"""How many slots, and how long a context, a model gets in the memory that there is."""

from pathlib import Path

import pytest

from app.errors import SetupError
from app.models.device import DeviceAssignment
from app.models.loading import create_engine
from app.settings import ModelSettings


def test_the_context_is_limited_to_what_the_model_supports(tiny_folder: Path) -> None:
    _, facts = create_engine(ModelSettings(path=str(tiny_folder), device="cpu", slots=2, context=100_000))
    assert facts.context == 128


def test_the_ledger_limits_the_number_of_slots(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(memory: int, requested: int | None) -> int:
        monkeypatch.setattr("app.engine.conversion.device_memory", lambda device, weights: weights + memory)
        return create_engine(ModelSettings(path=str(tiny_folder), device="cpu", slots=requested))[1].slots

    slot_bytes = 128 * 4 * 2 * (2 * (16 + 16))  # tokens x float32 x layers x (kv heads x (key + value))
    activation_bytes = 4 * 512 * (4 * 64 + 3 * 128) + 16 * 256 * 300
    assert slots(activation_bytes + int(6.1 * slot_bytes / 0.9), None) == 5  # and one slot for long texts
    assert slots(10**9, None) == 32
    assert slots(10**9, 40) == 40
    with pytest.raises(SetupError, match="0 slots would fit"):
        slots(activation_bytes + slot_bytes // 4, None)
    with pytest.raises(SetupError, match=r"6 slots do not fit cpu: .* 5 slots would fit"):
        slots(activation_bytes + int(6.1 * slot_bytes / 0.9), 6)


def test_the_context_is_the_models_own_or_what_memory_holds(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot adds 64 tokens to the cache of all here, where it is 4,096."""
    monkeypatch.setattr("app.engine.capacity.SLOT_TOKENS", 64)
    bytes_of_64, activation_bytes = 64 * 4 * 2 * (2 * (16 + 16)), 4 * 512 * (4 * 64 + 3 * 128) + 16 * 256 * 300

    def created(parts: int, **fields: int) -> tuple[int, int, int, str]:
        """In memory for so many slots beside a text's window."""
        memory = activation_bytes + int((parts + 1.1) * bytes_of_64 / 0.9)
        monkeypatch.setattr("app.engine.conversion.device_memory", lambda device, weights: weights + memory)
        engine, facts = create_engine(ModelSettings(path=str(tiny_folder), device="cpu", text_window=64, **fields))
        assert (engine.limits.context, facts.text_window, len(engine.performer.scoring_pages)) == (facts.context, 64, 1)
        return facts.slots, facts.context, engine.performer.pages, facts.context_in_words

    assert created(40) == (32, 128, 32, "128")
    assert created(2, slots=1) == (1, 128, 2, "128"), "one slot has a whole context"
    with pytest.raises(SetupError, match="1 slots would fit"):
        created(1, slots=2)
    with pytest.raises(SetupError, match="1 slots do not fit"):
        created(-1)
    assert created(1) == (1, 64, 1, "64 (by the memory that is free; the model itself could hold 128)")
    assert created(1, context=64) == (1, 64, 1, "64 (by the setting model.context; the model itself could hold 128)")
    with pytest.raises(SetupError, match=r"a context of 128 tokens does not fit cpu: .*lower --model.context, or leave it out"):
        created(1, context=128)
    assert created(3, cache_tokens=100)[1::2] == (100, "100 (by the setting model.cache_tokens; the model itself could hold 128)")


def test_a_cache_in_tokens_is_shared_by_the_slots_and_bounds_the_context(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def created(**fields: int) -> tuple[int, int, int]:
        engine, facts = create_engine(ModelSettings(path=str(tiny_folder), device="cpu", **fields))
        return facts.slots, facts.context, engine.performer.pages

    assert created(cache_tokens=1000, slots=40) == (40, 128, 16)
    assert created(cache_tokens=100, slots=3) == (3, 100, 2)
    assert created(slots=3) == (3, 128, 6)
    monkeypatch.setattr("app.engine.conversion.device_memory", lambda device, weights: weights + 10**7)
    with pytest.raises(SetupError, match=r"a cache of .* lower --model.cache_tokens"):
        created(cache_tokens=100_000, slots=3)


def test_workers_that_share_a_cpu_divide_its_threads_and_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr("app.models.loading.torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("app.models.loading.torch.set_num_threads", threads.append)
    slot_bytes = 64 * 4 * 2 * (2 * (16 + 16))
    activation_bytes = 4 * 16 * (4 * 64 + 3 * 128) + 16 * 256 * 300
    monkeypatch.setattr(
        "app.engine.conversion.device_memory", lambda device, weights: weights + 3 * (activation_bytes + int(11.1 * slot_bytes / 0.9))
    )

    def slots(assignment: DeviceAssignment | None) -> int:
        return create_engine(ModelSettings(path=str(tiny_folder), context=64, step_tokens=16), assignment)[1].slots

    alone, shared_by_three = slots(None), slots(DeviceAssignment(("cpu", "cuda:0", "auto", "cpu"), 3))
    assert threads.count(2) == 1, "the others are those of packing"
    assert (alone, shared_by_three) == (32, 10)
