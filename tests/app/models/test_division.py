"""Which card each part of a divided model goes to, what is refused, and that it is loaded and answers as on one device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import answers_of, drain
from peft_adapters import adapter
from tinymodels import SHAPES, tiny

from app.engine.capacity import CacheLimits
from app.engine.engine import Engine
from app.engine.events import Scored
from app.engine.request import Generate, SamplingParams, Score, Window
from app.errors import SetupError, UnsupportedModel
from app.models.device import DeviceAssignment
from app.models.division import _parts, check_divisible, device_map, divide
from app.models.loading import create_engine, resolve_devices
from app.models.source import source_of
from app.settings import ModelSettings
from models.gguf import write_gguf
from models.synthetic import Shape, save

CARDS = torch.device("cuda:0"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("sizes", "room", "places"),
    [
        ([1] * 10, [1, 1], [0] * 5 + [1] * 5),
        ([1] * 9, [2, 1], [0] * 6 + [1] * 3),
        ([9, 1, 1, 1], [10, 10], [0, 1, 1, 1]),
        ([1, 1, 1, 9], [10, 10], [0, 0, 0, 1]),
        ([3, 0, 3, 3, 0], [7, 7, 7], [0, 0, 1, 2, 2]),
        ([5, 5], [1, 100], [1, 1]),
        ([4, 4, 4], [8], [0, 0, 0]),
    ],
)
def test_the_fullest_card_is_as_empty_as_possible(sizes: list[int], room: list[int], places: list[int]) -> None:
    assert divide(sizes, room) == places


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in {"Falcon", "Gemma2"}])
def test_each_weight_has_one_place_and_a_tied_projection_that_of_its_embedding(name: str) -> None:
    model = tiny(name)
    parts = list(_parts(model))
    assert len(parts) == 4 and [len(part) for part in parts[1:3]] == [1, 1]
    owners = {key: [at for at, part in enumerate(parts) if any(key.startswith(f"{each}.") for each in part)] for key in model.state_dict()}
    assert all(len(places) == 1 for places in owners.values())
    names: dict[int, set[int]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), set()).update(owners[key])
    assert all(len(places) == 1 for places in names.values()) and names[id(model.get_input_embeddings().weight)] == {0}


def test_a_model_that_does_not_name_its_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama")
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM is not served by several cards"):
        list(_parts(model))


def test_cards_share_weights_and_cache_by_their_free_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, settings, limits = source_of(str(tiny_folder)), ModelSettings(path=str(tiny_folder)), CacheLimits(2, 128)
    free = {CARDS[0]: 6_000_000, CARDS[1]: 6_000_000}
    monkeypatch.setattr("app.models.division.device_memory", lambda card, weights: free[card])
    places = device_map(source, settings, CARDS, limits)
    assert [places[f"model.layers.{layer}"] for layer in (0, 1)] == list(CARDS)
    assert places["model.embed_tokens"] == places["model.rotary_emb"] == CARDS[0] and places["lm_head"] == CARDS[1]
    free |= {CARDS[0]: 43_000_000, CARDS[1]: 24_000_000}  # of the first one's two layers the caches would be more than twice as large
    for slots, last in ((1, CARDS[0]), (300, CARDS[1])):
        assert device_map(source, settings, CARDS, CacheLimits(slots, 128))["model.layers.1"] == last
    free |= {CARDS[0]: 2_700_000, CARDS[1]: 6_000_000}
    assert set(device_map(source, settings, CARDS, limits).values()) == {CARDS[1]}
    free[CARDS[1]] = 2_900_000
    with pytest.raises(SetupError, match=r"2 slots do not fit cuda:1: weights .* need .* slots would fit; or lower --model\.context"):
        device_map(source, settings, CARDS, limits)


REFUSED: dict[str, Callable[[Path], tuple[dict[str, Any], str]]] = {
    "int4": lambda folder: ({"path": folder, "quantize": "int4"}, r"model\.quantize: int4 .* cuda:0,1; use nf4, int8 or none"),
    "an adapter beside": lambda folder: ({"path": folder, "adapters": {"a": "b"}}, r"model\.adapters: none .* give one as model\.path"),
    "a GGUF file": lambda folder: ({"path": file_of(folder)}, r"model\.path: .* is a GGUF file, .* use the original weights with nf4"),
    "such an observer": lambda folder: ({"path": folder, "observer": file_of(folder)}, r"model\.observer: .* is a GGUF file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_several_cards_do_not_serve_is_refused(case: str, tmp_path: Path) -> None:
    fields, sentence = REFUSED[case](save(Shape(64, 1, 2, 1, 64, 600, 64), tmp_path / "model", 0))
    with pytest.raises(SetupError, match=sentence):
        check_divisible(ModelSettings(**{**fields, "path": str(fields["path"])}, device="cuda:0,1"))


def file_of(folder: Path) -> str:
    return str(write_gguf(folder, folder.with_suffix(".gguf"), "Q4_0", {}))


def test_cards_are_there_and_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_devices(DeviceAssignment(("cuda:1,0",))) == CARDS[::-1]
    with pytest.raises(SetupError, match=r"cuda:0,2 does not exist: .* sees 2"):
        resolve_devices(DeviceAssignment(("cuda:0,2",)))
    with pytest.raises(SetupError, match="names a card twice"):
        resolve_devices(DeviceAssignment(("cuda:1,1",)))


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("is_adapter", [False, True])
def test_it_is_loaded_and_answers_as_on_one_device(
    tiny_folder: Path, tmp_path: Path, is_adapter: bool, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU by two names, so that transformers and accelerate divide it."""
    path = str(adapter(tiny_folder, tmp_path) if is_adapter else tiny_folder)
    settings = ModelSettings(path=path, observer=str(tiny_folder), draft=str(tiny_folder), quantize=quantize, slots=2, device="cpu")
    expected = found(create_engine(settings)[0])
    monkeypatch.setattr("accelerate.utils.modeling.check_device_same", lambda first, second: first.type == second.type)
    monkeypatch.setattr("app.models.loading.resolve_devices", lambda assignment: (torch.device("cpu"), torch.device("cpu:0")))
    engine, facts = create_engine(settings)
    places = engine.performer.model.hf_device_map
    assert {str(places[f"model.layers.{layer}"]) for layer in (0, 1)} == {"cpu", "cpu:0"} and facts.device == "cpu"
    assert found(engine) == expected
    monkeypatch.setattr(engine.performer, "devices", CARDS)
    with pytest.raises(SetupError, match="adapter 'late': none is served beside a model that is divided"):
        engine.reader.read("late", path)


def found(engine: Engine) -> tuple[dict[str, str], Any]:
    """A sampled answer, and the statistics of a text."""
    engine.submit(Generate("answer", (5, 6, 7), 12, SamplingParams(temperature=1.0, seed=3), ignore_eos=True))
    engine.submit(Score("text", tuple(range(40)), (Window(0, 40, 1),), True))
    events = drain(engine)
    return answers_of(events), next(event.columns for event in events if isinstance(event, Scored))
