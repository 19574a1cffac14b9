"""From a folder to an engine, plain and quantized, and the sentences for what cannot be."""

from pathlib import Path

import pytest
import torch
from conftest import tiny

from app.engine.flat import Room, adopt
from app.engine.layout import Span, layout_of
from app.engine.linear import round_weights
from app.engine.request import Delta, Generate, Sampling
from app.errors import SetupError
from app.models.device import Seat
from app.models.loading import _load, create_engine, resolve_device
from app.models.revision import revision_of
from app.settings import ModelSettings


def settings(folder: Path, **more: object) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", slots=2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "fp4", "int4"])
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


def test_slots_come_from_the_ledger(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(memory: int, asked: int | None) -> int:
        monkeypatch.setattr("app.engine.flat.device_memory", lambda device, weights: weights + memory)
        return create_engine(ModelSettings(path=str(tiny_folder), device="cpu", slots=asked))[1].slots

    one = 128 * 4 * 2 * (2 * (16 + 16))  # tokens x float32 x layers x (kv heads x (key + value))
    acts = 4 * 512 * (4 * 64 + 3 * 128) + 16 * 256 * 300
    assert slots(acts + int(6.1 * one / 0.9), None) == 5  # and one for long texts
    assert slots(10**9, None) == 32
    assert slots(10**9, 40) == 40
    with pytest.raises(SetupError, match="0 slots would fit"):
        slots(acts + one, None)
    with pytest.raises(SetupError, match=r"6 slots do not fit cpu: .* 5 slots would fit"):
        slots(acts + int(6.1 * one / 0.9), 6)


def test_processes_that_share_a_cpu_share_its_threads_and_its_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr("app.models.loading.torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("app.models.loading.torch.set_num_threads", threads.append)
    one = 64 * 4 * 2 * (2 * (16 + 16))
    acts = 4 * 16 * (4 * 64 + 3 * 128) + 16 * 256 * 300
    monkeypatch.setattr("app.engine.flat.device_memory", lambda device, weights: weights + 3 * (acts + int(11.1 * one / 0.9)))

    def slots(seat: Seat | None) -> int:
        return create_engine(ModelSettings(path=str(tiny_folder), context=64, step_tokens=16), seat)[1].slots

    alone, third = slots(None), slots(Seat(("cpu", "cuda:0", "auto", "cpu"), 3))
    assert threads == [2]
    assert (alone, third) == (32, 10)


def test_facts_tell_revision_and_fingerprint(tiny_folder: Path) -> None:
    plain, quantized = (create_engine(settings(tiny_folder, quantize=quantize))[1] for quantize in ("none", "int8"))
    assert plain.revision == quantized.revision == revision_of(str(tiny_folder), None)
    assert plain.fingerprint.startswith("fp_") and plain.fingerprint != quantized.fingerprint


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("none", "bfloat16"), ("int8", "auto"), ("nf4", "auto"), ("fp4", "auto"), ("int4", "auto")]
)
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_logits_in_a_crowd_are_those_of_the_librarys_own_forward(tmp_path: Path, name: str, quantize: str, dtype: str) -> None:
    """Within 3% of the logits' norm: bfloat16 keeps 8 bits, and kernels add in another order for another number of rows."""
    tiny(name).save_pretrained(tmp_path)
    given = settings(tmp_path, quantize=quantize, dtype=dtype)
    ids = [(7 * place + 3) % 300 for place in range(40)]
    own = _load(str(tmp_path), given, torch.device("cpu"))
    if quantize == "int4":
        round_weights(own)
    with torch.inference_mode():
        wanted = own(torch.tensor([ids])).logits[0].float()
    flat = adopt(_load(str(tmp_path), given, torch.device("cpu")), Room(3, 128), quantize == "int4")
    spans = [Span(0, 30, 0, 0), Span(30, 70, 0, 1), Span(70, 80, 0, None)]
    flat.forward(ids[:30] + ids + ids[:10], [*range(30), *range(40), *range(10)], layout_of([], spans, 128, flat.device))
    found = []
    for place in range(30, 40):  # slot 0 decodes on, beside another slot and a text
        layout = layout_of([(0, place), (1, place + 10)], [Span(2, 12, 0, None)], 128, flat.device)
        hidden = flat.forward([ids[place], ids[place], *ids[:10]], [place, place + 10, *range(10)], layout)
        found.append(flat.head(hidden[:1])[0].float())
    error = float((torch.stack(found) - wanted[30:]).norm() / wanted[30:].norm())
    assert error < 0.03


def test_int4_is_a_kernel_of_the_cpu(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.loading.resolve_device", lambda seat: torch.device("cuda:0"))
    with pytest.raises(SetupError, match="on cuda:0 use nf4"):
        create_engine(settings(tiny_folder, quantize="int4"))


def test_a_device_that_is_not_there(tiny_folder: Path) -> None:
    with pytest.raises(SetupError, match=r"cuda:7 is not there"):
        resolve_device(Seat(("cpu", "cuda:7"), 1))


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
