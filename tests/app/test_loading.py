"""From a folder to an engine, plain and quantized, and the sentences for what cannot be."""

from pathlib import Path

import pytest
import torch
from conftest import tiny

from app.engine.request import Delta, Generate, Sampling
from app.errors import SetupError
from app.loading import create_engine, resolve_device
from app.settings import ModelSettings


def settings(folder: Path, **more: object) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", slots=2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "fp4"])
def test_every_quantization_answers_on_a_cpu(tiny_folder: Path, quantize: str) -> None:
    engine, facts = create_engine(settings(tiny_folder, quantize=quantize, observer=str(tiny_folder)))
    assert engine.idle
    engine.submit(Generate("a", (0, 5, 9), 6, Sampling(temperature=0.0)))
    events = []
    while not engine.idle:
        events += engine.step()
    assert sum(event.tokens for event in events if isinstance(event, Delta)) >= 1
    assert events[-1].finish in {"stop", "length"}
    assert (facts.quantize, facts.device, facts.chat) == (quantize, "cpu", True)
    assert facts.dtype == ("float32" if quantize == "none" else "bfloat16")
    linear = engine.performer.model.model.layers[0].mlp.up_proj
    assert (type(linear) is torch.nn.Linear) == (quantize == "none")


def test_the_context_is_cut_to_what_the_model_was_made_for(tiny_folder: Path) -> None:
    _, facts = create_engine(settings(tiny_folder, context=100_000))
    assert facts.context == 128


def test_slots_that_cannot_fit_are_refused_with_the_numbers(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.flat.free_bytes", lambda device: 100_000)
    with pytest.raises(SetupError, match=r"2 slots of 128 tokens need .* 1 slots would fit"):
        create_engine(settings(tiny_folder))


def test_slots_that_are_not_set_are_as_many_as_fit(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = 128 * 4 * 2 * (2 * (16 + 16))  # tokens x float32 x layers x (kv heads x (key + value))
    monkeypatch.setattr("app.engine.flat.free_bytes", lambda device: 5 * one / 0.8 + 1)
    assert create_engine(ModelSettings(path=str(tiny_folder), device="cpu"))[1].slots == 5
    monkeypatch.setattr("app.engine.flat.free_bytes", lambda device: 10**9)
    assert create_engine(ModelSettings(path=str(tiny_folder), device="cpu"))[1].slots == 32
    monkeypatch.setattr("app.engine.flat.free_bytes", lambda device: one / 2)
    with pytest.raises(SetupError, match="0 slots would fit"):
        create_engine(ModelSettings(path=str(tiny_folder), device="cpu"))


def test_a_device_that_is_not_there(tiny_folder: Path) -> None:
    with pytest.raises(SetupError, match=r"cuda:7 is not there"):
        resolve_device("cuda:7")


def test_float16_cannot_be_had_with_bitsandbytes_on_a_cpu(tiny_folder: Path) -> None:
    with pytest.raises(SetupError, match="float16"):
        create_engine(settings(tiny_folder, quantize="nf4", dtype="float16"))


def test_a_layer_that_nf4_has_no_kernel_for_is_a_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    narrow = tiny("GPTNeoX")  # its MLP is 96 wide, and the blocks of nf4 hold 64 weights
    narrow.save_pretrained(tmp_path)
    for file in tiny_folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SetupError, match="quantize=nf4"):
        create_engine(settings(tmp_path, quantize="nf4"))


def test_a_broken_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SetupError):
        create_engine(settings(tmp_path))


def test_an_observer_with_another_vocabulary_is_refused(tiny_folder: Path, bundled: Path) -> None:
    with pytest.raises(SetupError, match="another vocabulary"):
        create_engine(settings(tiny_folder, observer=str(bundled)))
