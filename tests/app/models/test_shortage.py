"""Whether a model surely does not fit: close to what the worker's ledger finds, and said with the numbers."""

from pathlib import Path

import pytest

from app.errors import SetupError
from app.models import shortage
from app.settings import ModelSettings

GIB = 2**30


def test_what_fits_is_no_shortage(tiny_folder: Path) -> None:
    assert shortage.shortage(ModelSettings(path=str(tiny_folder))) is None


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"slots": 1000}, "1000 slots need"),
        ({"slots": 500, "replicas": 2}, "500 slots in each of 2 replicas need"),
        ({"slots": 2, "context": 1_000_000}, "a context of 1000000 tokens need"),
        ({"cache_tokens": 2_000_000, "replicas": 2}, "a cache of 2000000 tokens in each of 2 replicas need"),
    ],
)
def test_a_shortage_is_said_with_the_numbers(
    endless_folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], asked: str
) -> None:
    monkeypatch.setattr(shortage, "cpu_memory", lambda resident: 300_000_000)
    message = shortage.shortage(ModelSettings(path=str(endless_folder), **settings))
    assert message is not None and asked in message and message.endswith("GiB are missing")


@pytest.mark.parametrize(("dtype", "share"), [("auto", 1.0), ("bfloat16", 0.5), ("float32", 1.0)])
def test_weights_and_slots_are_those_of_the_worker(bundled: Path, dtype: str, share: float) -> None:
    """The storyteller has 5,770,496 weights; a slot of 1,024 tokens is what its cache takes."""
    ledger = shortage._ledger(ModelSettings(path=str(bundled), dtype=dtype, context=1024), str(bundled))
    assert ledger.weights == pytest.approx(4 * 5_770_496 * share, rel=0.02)
    config = shortage.source_of(str(bundled)).config("path")
    head = config.hidden_size // config.num_attention_heads
    assert ledger.slot == 1024 * config.num_hidden_layers * config.num_key_value_heads * 2 * head * 4 * share


def test_what_is_no_model_is_left_to_the_load(tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        shortage.shortage(ModelSettings(path=str(tmp_path)))


def test_a_hub_name_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "source_of", lambda path: pytest.fail("it was looked up"))
    assert shortage.shortage(ModelSettings(path="owner/name:Q4_K_M", slots=1000)) is None
